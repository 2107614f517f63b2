"""Embedding people by their pairs: who gets how many draws, what is left to learn from, what is kept and refused."""

import json
import re
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file

from diffpo.captioners.column import ColumnEmbedder
from diffpo.captioners.contrast import ClipEmbedder
from diffpo.curate.directions import along, find_directions
from diffpo.curate.embedding import Embedding, Workers, read_embedder
from diffpo.curate.support import choose_support, split_people
from diffpo.curate.users import UserOptions, embed_users
from diffpo.curate.write import record_of
from diffpo.data import Pairs, load_splits
from diffpo.data.splits import normalise
from diffpo.errors import UserError
from diffpo.media.users import EMBEDDER

CLIP = ClipEmbedder(path="shapes:pickscore", device="cpu")  # its network is loaded once


@pytest.fixture
def table(records, jsonl):
    """Three people with eight pairs each, of eight prompts, of which `cat` has two pairs less; and a row of nobody."""

    def make(**columns):
        rows = records(25, user_id=lambda i: ["ann", "bob", "cat", None][min(i // 8, 3)])
        for i, row in enumerate(rows):
            row["prompt"] = f"Prompt {i % 8}"
        return jsonl([row | columns for row in rows[:22] + rows[24:]])

    return make


def embed(table, tmp_path, embedding=None, **options):
    done = embed_users(Pairs(path=table), embedding or Embedding(CLIP), tmp_path / "users", UserOptions(**options))
    return done, parquet.read_table(tmp_path / "users" / "users.parquet").to_pylist()


def test_a_draw_is_what_the_embedder_makes_of_support_pairs(table, tmp_path):
    done, rows = embed(table(), tmp_path, pairs=2, draws=3)
    assert str(done) == (
        "3 people who are seen and 0 who are not, 9 draws; 5 train and 0 test pairs are no support; a tenth of the "
        "people have 36% of the pairs"
    )
    states = load_file(tmp_path / "users" / "states.safetensors")["states"]
    assert states.dtype == torch.float16 and states.shape == (9, 1, 128)
    assert torch.allclose(states.float().norm(dim=-1), torch.ones(9, 1), atol=2e-3)
    assert Counter(row["user_id"] for row in rows) == {"ann": 3, "bob": 3, "cat": 3}
    for name in ("ann", "bob"):
        used = [pair for row in rows if row["user_id"] == name for pair in row["pairs"]]
        assert len(set(used)) == len(used) == 6  # the first draws share no pair
    index = json.loads((tmp_path / "users" / "users.json").read_text())
    assert index["width"] == 128 and index["states"] == 1 and index["pairs"] == 2
    assert index["embedder"].startswith("clip (weights blake2b:")


def test_no_pair_that_is_left_shares_a_prompt_with_the_support_of_its_user(table, tmp_path):
    _, rows = embed(table(), tmp_path, pairs=2, draws=2, unseen=0.5, seed=3)
    seen = {row["user_id"]: row["seen"] for row in rows}
    assert set(seen.values()) == {True, False}
    support = {(row["user_id"], normalise(prompt)) for row in rows for prompt in row["prompts"]}
    for split, wanted in (("train", True), ("test", False)):
        left = load_splits(Pairs(path=str(tmp_path / "users" / "pairs"), split=split)).train
        names, prompts = left.column("user_id"), left.column("prompt")
        assert len(names) and {seen[name] for name in names} == {wanted}
        assert not support & {(name, normalise(prompt)) for name, prompt in zip(names, prompts, strict=True)}


def test_pairs_of_one_prompt_are_set_aside_together(records, jsonl):
    rows = records(9, user_id=lambda i: "ann")  # three prompts, three pairs each
    (person,) = split_people([load_splits(Pairs(path=jsonl(rows))).train], 0.0, 0)
    (chosen,), _ = choose_support([person], 2, 2, 1, 0)
    (prompt,) = chosen.support
    assert len(chosen.left) == 6 and not set(chosen.rows[prompt]) & set(chosen.left)
    assert set(chosen.draws[0]) < set(chosen.rows[prompt])


def test_more_draws_than_the_support_allows_take_its_pairs_again(table, tmp_path):
    _, rows = embed(table(), tmp_path, pairs=2, draws=4, support=4)
    pairs = [set(row["pairs"]) for row in rows if row["user_id"] == "ann"]
    assert len(set.union(*pairs)) == 4 and not pairs[0] & pairs[1]
    assert len(pairs) == 4


def test_users_with_too_few_pairs_are_left_out_and_counted(table, tmp_path):
    done, rows = embed(table(), tmp_path, pairs=7)
    assert done.left_out == {"cat": 6} and {row["user_id"] for row in rows} == {"ann", "bob"}
    assert "1 people with too few pairs are left out" in str(done)
    with pytest.raises(
        UserError,
        match=r"8 support pairs and another one.*the most that can be support pairs of a person are 7",
    ):
        embed_users(Pairs(path=table()), Embedding(CLIP), tmp_path / "more", UserOptions(pairs=8))


def test_what_was_embedded_is_read_and_processes_share_the_rest(table, tmp_path, monkeypatch):
    asked = []
    look = ClipEmbedder.embed
    monkeypatch.setattr(ClipEmbedder, "embed", lambda self, choices: asked.append(len(choices)) or look(self, choices))
    embedding, options = Embedding(CLIP), UserOptions(pairs=2, draws=2)
    source, alone = Pairs(path=table()), tmp_path / "alone"
    embed_users(source, embedding, alone, options)
    assert asked == [2] * 6
    embed_users(source, embedding, tmp_path / "again", options)
    assert len(asked) == 6
    for name in ("states.safetensors", "users.parquet", "users.json"):
        assert (alone / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    waited = []
    embed_users(source, embedding, tmp_path / "two", options, workers=Workers(1, 2, lambda: waited.append(1)))
    assert waited and not (tmp_path / "two").exists()  # the first process writes


def test_a_new_person_is_embedded_like_the_others(table, tmp_path):
    embed(table(), tmp_path, pairs=1, draws=4, directions=2)
    said, directions = read_embedder(tmp_path / "users" / EMBEDDER)
    assert said["name"] == "clip" and said["options"] == asdict(CLIP) and directions.shape == (128, 2)
    like = Embedding(CLIP, directions)
    again = embed_users(Pairs(path=table()), like, tmp_path / "like", UserOptions(pairs=1, draws=4))
    for name in ("states.safetensors", "users.json"):
        assert (tmp_path / "users" / name).read_bytes() == (again.folder / name).read_bytes()
    with pytest.raises(UserError, match=r"says nothing of how people are embedded"):
        read_embedder(tmp_path / EMBEDDER)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"user_id": None}, {}, r"every `user_id` of .* is missing or empty"),
        ({}, {"pairs": 4, "support": 2}, r"a draw of 4 pairs cannot be made of a support of 2"),
        ({}, {"directions": 3, "draws": 2, "pairs": 1}, r"3 directions cannot be found of 6 embeddings of 3 people"),
        ({"chosen": "img/missing.png"}, {}, r"row \d+ of .* a pair of \w+, cannot be used: .*missing\.png"),
    ],
)
def test_what_cannot_be_embedded_is_said(table, tmp_path, columns, options, message):
    with pytest.raises(UserError, match=message):
        embed(table(**columns), tmp_path, **options)
    assert not (tmp_path / "users").exists()


def test_a_table_without_users_is_refused(records, jsonl, tmp_path):
    with pytest.raises(UserError, match=r"no column `user_id`.*--columns user_id=NAME"):
        embed(jsonl(records(3)), tmp_path)


def test_nobody_is_seen_and_unseen(records, jsonl, tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        jsonl(records(6, user_id=lambda i: "ann"), name)
    source = Pairs(path=str(tmp_path / "table" / "a.jsonl"), validation_path=str(tmp_path / "table" / "b.jsonl"))
    with pytest.raises(UserError, match=r"1 people stand in both splits .*ann"):
        embed_users(source, Embedding(CLIP), tmp_path / "users", UserOptions(pairs=1))


def test_a_folder_made_otherwise_is_replaced_only_when_asked(table, tmp_path):
    embed(table(), tmp_path, pairs=2)
    with pytest.raises(UserError, match=r"made with other settings .*pairs was 2, is now 1.*Nothing was removed"):
        embed(table(), tmp_path, pairs=1)
    record = record_of(tmp_path / "users", "train")  # as an earlier version wrote it, which knew an option less
    record.write_text(re.sub(r'"pairs": 2,?', "", record.read_text()))
    with pytest.raises(UserError, match=r"pairs is now 2, and an earlier version of diffpo did not note it.*--fresh"):
        embed(table(), tmp_path, pairs=2)
    embed_users(Pairs(path=table()), Embedding(CLIP), tmp_path / "users", UserOptions(pairs=1), fresh=True)


def test_directions_are_those_in_which_people_differ():
    """Two tastes among thirty numbers, of which others vary far more by luck."""
    draws = np.random.default_rng(0)
    tastes = draws.normal(size=(20, 2))
    luck = draws.normal(size=(20, 8, 30)) * np.r_[[0.5] * 2, [5.0] * 28]
    luck[:, :, :2] += tastes[:, None]
    owners = [f"user {i}" for i in range(20) for _ in range(8)]
    found = find_directions(luck.reshape(-1, 30), owners, 2)
    share = np.square(found[:2]).sum() / np.square(found).sum()
    assert share > 0.98
    scaled = find_directions(luck.reshape(-1, 30) * np.arange(1, 31), owners, 2)
    assert np.allclose(np.abs(scaled * np.arange(1, 31)[:, None]), np.abs(found), atol=1e-6)  # units do not matter


def test_vectors_are_stored_with_unit_length():
    states = np.array([[[3.0, 4.0]], [[0.0, 0.0]]])
    assert along(states, None).tolist() == [[[np.float32(0.6), np.float32(0.8)]], [[0.0, 0.0]]]
    assert along(states, np.array([[-1.0], [0.0]])).tolist() == [[[-1.0]], [[0.0]]]


def test_vectors_that_a_table_brings_along_are_averaged(records, jsonl, tmp_path):
    rows = records(8, user_id=lambda i: "ann", emb=lambda i: [[float(i), 1.0], [0.0, -2.0]])
    for i, row in enumerate(rows):
        row["prompt"] = f"Prompt {i}"
    column = Embedding(ColumnEmbedder(of="a model"))
    _, drawn = embed(jsonl(rows), tmp_path, column, pairs=2, draws=2)
    states = load_file(tmp_path / "users" / "states.safetensors")["states"].float()
    assert states.shape == (2, 2, 2)
    for row, state in zip(drawn, states, strict=True):
        mean = float(np.mean([int(name.split()[1]) for name in row["prompts"]]))
        assert torch.allclose(state[0], torch.tensor([mean, 1.0]).float() / float(np.hypot(mean, 1)), atol=2e-3)
        assert torch.allclose(state[1], torch.tensor([0.0, -1.0]))
    assert "of a model" in json.loads((tmp_path / "users" / "users.json").read_text())["embedder"]
    for wrong in (None, "x", [[1.0], [1.0, 2.0]]):
        table = jsonl([row | {"emb": wrong} for row in rows], "wrong.jsonl")
        with pytest.raises(UserError, match=r"column `emb`"):
            embed_users(Pairs(path=table), column, tmp_path / "wrong", UserOptions(pairs=2))
    table = jsonl([{name: value for name, value in row.items() if name != "emb"} for row in rows], "none.jsonl")
    with pytest.raises(UserError, match=r"no column `emb`.*--columns emb=NAME"):
        embed_users(Pairs(path=table), column, tmp_path / "none", UserOptions(pairs=2))
