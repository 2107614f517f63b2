"""Whose pairs a batch holds: states of the user's other pairs, and never a pair that they were made of."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_users import COUNT, EMBEDDING, save_users, user_states

from diffpo.core.types import Rng
from diffpo.data import Pairs, load_splits
from diffpo.data.encode import LiveEncodings
from diffpo.data.loader import PairLoader
from diffpo.data.splits import normalise
from diffpo.data.users import RowUsers
from diffpo.errors import UserError
from diffpo.media.users import INDEX, STATES, Users

DRAWS = {"ann": [["A one", "a two"], ["a three", "a  ONE"]], "bob": [["b one"]], "zoe": [["z one"]]}
TABLE = [
    *(("ann", text) for text in ("a one", "a two", "a three", "a four", "a five", "b one")),
    *(("bob", text) for text in ("b one", "b two", "a one")),
    *(("zoe", text) for text in ("z one", "z two")),
    ("tim", "t one"),
    (None, "n one"),
]
"""Users and prompts of a table. Nobody knows tim; zoe is unseen."""
LEARNED, HELD_OUT = [3, 4, 5, 7, 8], [3, 4, 5, 7, 8, 10]


@pytest.fixture
def users(tmp_path):
    return Users.open(save_users(tmp_path / "users", DRAWS, unseen=["zoe"]))


@pytest.fixture
def table(records, jsonl):
    rows = records(len(TABLE))
    for row, (name, prompt) in zip(rows, TABLE, strict=True):
        row |= {"user_id": name, "prompt": prompt}
    return jsonl(rows)


@pytest.fixture
def loader(table, users, encoder):
    def make(dropout):
        source = Pairs(path=table, resolution=16)
        pairs = load_splits(source).train
        encodings = LiveEncodings(pairs, source, encoder, seed=4)
        return PairLoader(pairs, encodings, seed=4, caption_dropout=0.0, users=RowUsers(pairs, users, dropout))

    return make


def test_support_pairs_are_never_learned_from_or_judged(loader, users):
    """Of no user, whatever the spelling of the prompt; another user's support pair is no secret."""
    support = {name: {normalise(p) for row in rows for p in users.prompts[row]} for name, rows in users.draws.items()}
    for dropout, rows in ((0.1, LEARNED), (None, HELD_OUT)):
        batches = list(loader(dropout).held_out(8))
        used = sorted(row for batch in batches for row in batch.index.tolist())
        assert used == rows
        assert not any(normalise(TABLE[row][1]) in support[TABLE[row][0]] for row in used)


def test_each_row_gets_a_draw_of_its_user_anew(loader, users):
    learner = loader(0.3)
    states, seen, nobody = user_states(4), [], 0
    for epoch in range(40):
        batch = learner.batch([3, 7], epoch)
        assert batch.cond.chosen.user is batch.cond.rejected.user and batch.cond.chosen.user.shape == (2, COUNT, 6)
        assert torch.equal(batch.cond.chosen.user, learner.batch([3, 7], epoch).cond.chosen.user)
        ann, bob = batch.cond.chosen.user
        seen += [next(k for k in (0, 1, None) if k is None or torch.equal(ann, states[k]))]
        assert torch.equal(bob, states[2]) or not bob.any()
        nobody += int(not ann.any()) + int(not bob.any())
        assert (seen[-1] is None) == (not ann.any())
    assert seen.count(0) > 5 and seen.count(1) > 5 and 12 <= nobody <= 36
    held_out = next(loader(None).held_out(8)).cond.chosen.user
    assert held_out.flatten(1).any(1).all(), "nobody is dropped from what is judged"
    assert torch.equal(held_out[-1], states[3]), "an unseen user is told, too"


def test_what_is_left_out_is_counted(loader, caplog):
    loader(0.1)
    said = caplog.text
    for words in ("of 13 rows 1 have no user_id", "1 are of users without states", "2 are of unseen users"):
        assert words in said
    assert "4 are support pairs of their user" in said


def test_other_states_are_another_identity(loader, users):
    before = loader(0.1).identity
    file = users.folder / STATES
    save_file({"states": user_states(4) + 1}, file)
    assert loader(0.1).identity != before


def test_names_may_be_numbers(records, jsonl, tmp_path):
    users = Users.open(save_users(tmp_path / "numbers", {"7": [["x"]]}))
    pairs = load_splits(Pairs(path=jsonl([row | {"user_id": 7} for row in records(2)]), resolution=16)).train
    rows = RowUsers(pairs, users, 0.0)
    assert not len(rows.left_out) and torch.equal(rows.states(Rng(0, 0, torch.tensor([1])))[0], user_states(1)[0])


def test_a_table_without_known_users_is_refused(records, jsonl, users):
    rows = [row | {"user_id": "tim"} for row in records(3)]
    pairs = load_splits(Pairs(path=jsonl(rows), resolution=16)).train
    with pytest.raises(UserError, match=r"no row of .* can be used .* of 3 rows 3 are of users without states"):
        RowUsers(pairs, users, 0.1)


def test_a_folder_that_is_no_users(tmp_path, users):
    with pytest.raises(UserError, match=r"has no users\.json, users\.parquet, states\.safetensors"):
        Users.open(tmp_path / "nothing")
    assert users.embedding == EMBEDDING
    with pytest.raises(UserError, match=r"knows no user 'anne'. Did you mean ann\? There are ann, bob, zoe\."):
        users.draws_of("anne")
    index = users.folder / INDEX
    index.write_text(json.dumps(json.loads(index.read_text()) | {"width": 7}))
    with pytest.raises(UserError, match="do not fit together"):
        Users.open(users.folder)
    index.write_text(json.dumps(json.loads(index.read_text()) | {"format": "diffpo users 0"}))
    with pytest.raises(UserError, match=r"written by another version of diffpo.*'diffpo users 0'.*again, with --fresh"):
        Users.open(users.folder)
    index.write_text("[]")
    with pytest.raises(UserError, match="cannot be read"):
        Users.open(users.folder)
