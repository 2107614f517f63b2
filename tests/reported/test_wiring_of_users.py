"""What users are told by must be theirs: faults in the wiring of states, people and settings that no test saw."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_fixtures import jsonl, one_thread, own_caches, picture, records  # noqa: F401
from safetensors.torch import load_file, save_file
from tiny import save_pipeline
from tiny_users import save_user_run, save_users, user_states

import diffpo.commands.personal
from diffpo.captioners.base import Choice, Portrait, UserEmbedder
from diffpo.captioners.column import ColumnEmbedder
from diffpo.commands.users import embed_users as embed_by_command
from diffpo.commands.users import open_embedding, personal, whom
from diffpo.curate.embedding import Asked, Embedding, Workers, embed_draws, read_embedder
from diffpo.curate.scorer_users import label_by_scorers
from diffpo.curate.support import Person, choose_support, split_people
from diffpo.curate.users import UserOptions, embed_users
from diffpo.data import Pairs, load_splits
from diffpo.errors import UserError
from diffpo.generation.generate import Request
from diffpo.generation.settings import GenerateOptions
from diffpo.generation.users import Audience
from diffpo.media.folder import Media
from diffpo.media.prompts import PromptSet
from diffpo.media.users import EMBEDDER, STATES, Users
from diffpo.scorers.base import ImageScorer


@dataclass(frozen=True, kw_only=True)
class RedEmbedder(UserEmbedder):
    """How much redder the chosen images are, and how long the prompts."""

    name = "red"
    is_vector = True
    gain: float = 1.0

    @property
    def provenance(self) -> dict[str, object]:
        return {"embedder": self.name, "gain": self.gain}

    def embed(self, choices: list[Choice]) -> Portrait:
        redder = [np.mean(c.chosen.getchannel(0)) - np.mean(c.rejected.getchannel(0)) for c in choices]
        states = [[self.gain * np.mean(redder), np.mean([len(c.prompt) for c in choices])]]
        return Portrait(np.array(states, np.float32))


def embed(path: str, gain: float = 1.0, rows: tuple[int, ...] = (0,)) -> list[float]:
    """What becomes of one draw."""
    person = Person("ann", True, load_splits(Pairs(path=path)).train, {})
    (portrait,) = embed_draws([Asked(person, [*rows])], RedEmbedder(gain=gain), Workers())
    return portrait.states[0].tolist()


def test_states_are_of_the_very_choices(records, jsonl):  # noqa: F811
    """The preferred image first, whatever order a label turns round; other prompts or options are other states."""
    rows = records(2)
    plain = embed(jsonl(rows))
    assert plain[0] != 0
    turned = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    assert embed(jsonl(turned, "turned.jsonl")) == [-plain[0], plain[1]]
    against = embed(jsonl([row | {"preference": 0.2} for row in rows], "against.jsonl"))
    assert against == [-plain[0], plain[1]]
    assert embed(jsonl([row | {"prompt": "x"} for row in rows], "x.jsonl")) == [plain[0], 1.0]
    assert embed(jsonl(rows), gain=2.0) == [pytest.approx(2 * plain[0]), plain[1]]


def test_the_seed_chooses_the_support_and_the_unseen(records, jsonl):  # noqa: F811
    rows = records(40, user_id=lambda i: f"user {i // 4}")
    rows = [row | {"prompt": f"prompt {i % 4}"} for i, row in enumerate(rows)]
    table = load_splits(Pairs(path=jsonl(rows))).train

    def chosen(seed: int) -> list[tuple]:
        people, _ = choose_support(split_people([table], 0.5, 0), 2, 2, 1, seed)
        return [tuple(person.draws[0]) for person in people]

    def seen(seed: int) -> list[bool]:
        return [person.seen for person in split_people([table], 0.5, seed)]

    assert chosen(0) == chosen(0) != chosen(1) and seen(0) == seen(0) != seen(1)


def vectors(records, jsonl, name: str, people: dict[str, list[float]]) -> str:  # noqa: F811
    """A table of four pairs of each person, with vectors around their own."""
    names = list(people)
    rows = records(4 * len(names), user_id=lambda i: names[i // 4])
    for i, row in enumerate(rows):
        own = np.array(people[names[i // 4]])
        row |= {"prompt": f"prompt {i % 4}", "emb": (own + 0.01 * np.array([i % 2, i % 3])).tolist()}
    return jsonl(rows, name)


@pytest.fixture
def known(records, jsonl, tmp_path) -> Path:  # noqa: F811
    """A folder of users, seen ones who differ in their first number, and unseen ones who differ in their second."""
    seen = vectors(records, jsonl, "seen.jsonl", {"a": [1.0, 0.0], "b": [-1.0, 0.0], "c": [0.5, 0.0]})
    unseen = vectors(records, jsonl, "unseen.jsonl", {"x": [0.1, 90.0], "y": [0.1, -90.0]})
    options = UserOptions(pairs=1, draws=2, directions=1)
    source = Pairs(path=seen, validation_path=unseen)
    done = embed_users(source, Embedding(ColumnEmbedder(of="mine")), tmp_path / "known", options)
    assert (done.seen, done.unseen) == (3, 2)
    assert Users.open(tmp_path / "known").seen == {"a": True, "b": True, "c": True, "x": False, "y": False}
    return tmp_path / "known"


def test_the_people_of_the_unseen_split_are_not_seen(records, jsonl, tmp_path):  # noqa: F811
    for split, names in (("train", "ab"), ("test", "xy")):
        vectors(records, jsonl, f"{split}.jsonl", {name: [1.0, i] for i, name in enumerate(names)})
    place, out = str(tmp_path / "table"), tmp_path / "users"
    embed_by_command(place, out, embedder="column,of=mine", pairs=1, unseen_split="test")
    assert Users.open(out).seen == {"a": True, "b": True, "x": False, "y": False}
    for split, names in (("train", "ab"), ("test", "xy")):
        left = load_splits(Pairs(path=str(out / "pairs"), split=split)).train
        assert set(left.column("user_id")) == set(names)


def test_directions_are_those_of_the_people_who_are_seen(known):
    _, directions = read_embedder(known / EMBEDDER)
    assert abs(directions[0, 0]) > abs(directions[1, 0])


def test_new_users_are_embedded_by_their_own_pairs_as_those_of_the_folder_were(known, records, jsonl):  # noqa: F811
    table = vectors(records, jsonl, "new.jsonl", {"zed": [3.0, 4.0], "other": [-3.0, 4.0]})
    embedding = open_embedding(known)
    assert embedding.embedder == ColumnEmbedder(of="mine") and embedding.directions is not None
    for name, sign in (("zed", 1), ("other", -1)):
        told = whom(None, name, None, known, table)
        users = Users.open(told["users"])
        assert users.folder != known and users.embedding == Users.open(known).embedding
        expected = embedding.finish(np.array([[sign * 3.005, 4.01]]))
        assert torch.allclose(users.states(users.draws_of(name)[0]), torch.from_numpy(expected), atol=1e-2)


def test_names_are_the_same_however_a_table_writes_them(records, jsonl, tmp_path):  # noqa: F811
    """Missing ids that made a column one of fractions name nobody, and 3 is 3; lists are no names."""
    rows = records(12, user_id=lambda i: float("nan") if i % 3 == 0 else float(i % 3))
    rows = [row | {"prompt": f"prompt {i}", "emb": [float(i % 3), 1.0]} for i, row in enumerate(rows)]
    done = embed_users(Pairs(path=jsonl(rows)), Embedding(ColumnEmbedder()), tmp_path / "users", UserOptions(pairs=2))
    assert done.seen == 2 and set(Users.open(tmp_path / "users").draws) == {"1", "2"}
    left = load_splits(Pairs(path=str(tmp_path / "users" / "pairs"))).train
    assert set(left.column("user_id")) == {"1", "2"}
    with pytest.raises(UserError, match=r"`user_id` holds names, numbers or null; 12 rows say something else"):
        load_splits(Pairs(path=jsonl([row | {"user_id": ["a"]} for row in rows])))


@pytest.mark.parametrize(
    ("emb", "message"),
    [
        (lambda i: [1.0] * (1 + i % 2), "all people need states of one shape; there are 1x1 of .*, 1x2 of"),
        (lambda i: [0.0, 0.0], "say nothing of them, for example user 0, user 1: their states are zeros"),
    ],
)
def test_states_that_say_nothing_or_do_not_go_together_are_refused(records, jsonl, tmp_path, emb, message):  # noqa: F811
    rows = records(8, user_id=lambda i: f"user {i % 2}", emb=emb)
    rows = [row | {"prompt": f"prompt {i}"} for i, row in enumerate(rows)]
    with pytest.raises(UserError, match=message):
        embed_users(Pairs(path=jsonl(rows)), Embedding(ColumnEmbedder()), tmp_path / "users", UserOptions(pairs=1))
    assert not (tmp_path / "users").exists()


def test_a_folder_of_users_is_replaced_only_where_it_holds_nothing_else(records, jsonl, tmp_path):  # noqa: F811
    def write(fresh: bool = False, emb: float = 1.0):
        rows = records(8, user_id=lambda i: f"user {i % 2}", emb=lambda i: [emb, 1.0])
        source = Pairs(path=jsonl([row | {"prompt": f"prompt {i}"} for i, row in enumerate(rows)]))
        return embed_users(source, Embedding(ColumnEmbedder()), tmp_path / "u", UserOptions(pairs=1), fresh=fresh)

    write()
    before = (tmp_path / "u" / STATES).read_bytes()
    with pytest.raises(UserError, match="made with other settings"):
        write(emb=2.0)  # the table has changed
    for place in ("notes.txt", "pairs/notes.txt"):
        (tmp_path / "u" / place).write_text("mine")
        with pytest.raises(UserError, match=f"holds other files, too, such as {place}"):
            write(fresh=True, emb=2.0)
        (tmp_path / "u" / place).unlink()
    assert (tmp_path / "u" / STATES).read_bytes() == before
    write(fresh=True, emb=2.0)
    assert (tmp_path / "u" / STATES).read_bytes() != before


class Channel:
    """The mean of one colour channel, times a number."""

    frames, judge = None, ImageScorer.judge

    def __init__(self, channel: int, scale: float):
        self.name, self._channel, self._scale = ("red", "green", "blue")[channel], channel, scale
        self.provenance = {"scorer": self.name, "scale": scale}

    def score(self, images, prompts):
        return torch.tensor([self._scale * np.mean(np.asarray(i)[..., self._channel]) for i in images])


def test_a_mixture_does_not_depend_on_the_scales_of_its_scorers(records, jsonl, tmp_path):  # noqa: F811
    path, found = jsonl(records(24)), []
    for scale in (1.0, 1e4):
        out = tmp_path / f"out-{scale}"
        label_by_scorers(Pairs(path=path), [Channel(0, scale), Channel(1, 1.0)], [{"red": 0.5, "green": 0.5}], out)
        table = load_splits(Pairs(path=str(out))).train
        found.append([(table.cell(i, "user_id"), table.cell(i, "chosen")) for i in range(len(table))])
    assert found[0] == found[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_pipeline("sd15", tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def asked(base, tmp_path):
    run = save_user_run(base, tmp_path / "run")
    users = save_users(tmp_path / "users", {"alice": [["x"]], "bob": [["y"]]})
    how = {"model": str(base), "tuned": str(run), "users": str(users), "blend": {"alice": 1.0}, "guidance": 1.0}
    return GenerateOptions(**how, steps=1, size=(16, 16), device="cpu", batch=1)


def test_images_are_made_anew_where_states_strength_or_adapter_are_others(asked, tmp_path):
    """All of these are settings of a media folder: it is never taken for one of others."""

    def settings(**more) -> dict:
        described = Request.of(replace(asked, **more), "x").describe(PromptSet.of(["a"]))
        return {key: value for key, value in described.items() if key not in ("model", "tuned")}

    before = settings()
    assert settings() == before and settings(strength=0.5) != before and settings(blend={"bob": 1.0}) != before
    save_file({"states": user_states(2) + 1}, tmp_path / "users" / STATES)
    assert settings() != before
    save_file({"states": user_states(2)}, tmp_path / "users" / STATES)
    assert settings() == before
    file = tmp_path / "run" / "final" / "user_adapter.safetensors"
    save_file({name: 2 * x for name, x in load_file(file).items()}, file)
    assert settings() != before


def test_an_audience_is_told_with_its_own_strength(asked):
    request = Request.of(asked)
    states = torch.cat([request.audience.states] * 2)
    audience = Audience({}, states, [1.0, 0.0], {"a": 0, "b": 1})
    media = [Media(file=name, prompt="a", prompt_id=0, seed=0, model="") for name in ("a", "b")]
    told, base = (np.asarray(clip.first) for clip in replace(request, audience=audience).open()(media))
    nobody = np.asarray(replace(request, audience=None).open()(media)[1].first)
    assert (base == nobody).all() and (told != nobody).any()


def test_options_of_a_personal_evaluation_reach_it(asked, monkeypatch, tmp_path):
    seen: dict = {}

    def run(given, out, *, fresh):
        seen.update(vars(given.options) | {"of": given, "out": out, "fresh": fresh})
        return {"results": []}

    monkeypatch.setattr(diffpo.commands.personal, "run_personal", run)
    how = {"users": Path(asked.users), "judge": "users-world", "out": tmp_path / "out", "prompts": "users:heldout:4"}
    personal(asked.model, str(asked.tuned), **how, strength=0.3, seed=7, steps=3, guidance=2.0, size="16x24", most=3)
    assert (seen["strength"], seen["seeds"], seen["steps"], seen["guidance"]) == (0.3, (7,), 3, 2.0)
    assert seen["size"] == (16, 24) and (seen["of"].seed, seen["of"].most) == (7, 3)


def test_users_who_are_no_numbers_are_refused(tmp_path):
    users = save_users(tmp_path / "users", {"alice": [["x"]]})
    save_file({"states": torch.full((1, 2, 6), float("nan"))}, users / STATES)
    with pytest.raises(UserError, match="no finite number"):
        Users.open(users).states(0)
    (users / "users.json").write_text(json.dumps({"embedder": "tiny"}))
    with pytest.raises(UserError, match="cannot be read"):
        Users.open(users)
