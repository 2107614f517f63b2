"""`diffpo personal`: users judge what a model makes for them; and the demonstration that trains one."""

import json
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import save_pipeline
from tiny_language import llava_onevision
from tiny_users import save_user_run, save_users

import diffpo.commands.personal
import diffpo.generation.personal
from diffpo.captioners.base import Choice, UserJudge
from diffpo.captioners.column import ColumnEmbedder
from diffpo.captioners.judges import ChatJudge, WorldJudge
from diffpo.commands.personal import Choices, Personal, _agreement, _draw, run_personal
from diffpo.commands.users import users_of, whom
from diffpo.curate.embedding import Embedding
from diffpo.data import Pairs
from diffpo.errors import UserError
from diffpo.generation.personal import Sitting, make_images, plan_sittings
from diffpo.generation.settings import GenerateOptions
from diffpo.media.folder import open_clip, read_media
from diffpo.media.prompts import load_prompts
from diffpo.media.users import EMBEDDER, STATES, Users, copy_embedder
from diffpo.worlds.users.people import utility

NAMES = ("user-00", "user-01", "user-02", "user-03")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_pipeline("sd15", tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    return save_user_run(base, tmp_path_factory.mktemp("runs") / "ppd")


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    draws = {name: [[f"{name} {i}"] for i in range(2)] for name in NAMES}
    return save_users(tmp_path_factory.mktemp("users") / "users", draws, unseen=NAMES[2:])


@pytest.fixture
def asked(base, run, people):
    options = GenerateOptions(
        model=str(base), tuned=str(run), steps=1, guidance=1.0, size=(64, 64), batch=8, device="cpu"
    )
    return Personal(
        options=options,
        users=people,
        judge=WorldJudge(),
        prompts=load_prompts("users:heldout:16"),
        each=2,
        most=2,
        rivals={"plain": GenerateOptions(**{**vars(options), "tuned": None})},
    )


def test_results_are_what_the_users_say_of_the_images(asked, people, tmp_path):
    found = run_personal(asked, tmp_path / "out")
    assert found == json.loads((tmp_path / "out" / "personal.json").read_text())
    compared = {(result["first"], result["second"]): result for result in found["results"]}
    assert list(compared) == [("own", "base"), ("own", "plain"), ("own", "others"), ("others", "base")]
    media = {kind: read_media(tmp_path / "out" / kind) for kind in ("own", "base", "others")}
    whose = {image["file"]: image["user"] for image in found["images"]}
    assert list(whose.values()) == [name for name in (*NAMES[2:], *NAMES[:2]) for _ in range(2)]
    users = Users.open(people)
    for (first, second), result in compared.items():
        if second == "plain":
            continue
        shares: dict[str, list[float]] = {}
        for one, other in zip(media[first], media[second], strict=True):
            name = whose[one.file]
            assert (one.file, one.prompt, one.seed) == (other.file, other.prompt, other.seed)
            support = {prompt for row in users.draws_of(name) for prompt in users.prompts[row]}
            assert one.prompt not in support, "a judged prompt must not be one of a support pair"
            a, b = (
                utility(open_clip(tmp_path / "out" / kind, item).first, one.prompt, name)
                for kind, item in ((first, one), (second, other))
            )
            shares.setdefault(name, []).append(0.5 + 0.5 * (a > b) - 0.5 * (a < b))
        assert result["users"] == {name: np.mean(values) for name, values in shares.items()}
        assert set(result["groups"]) == {"seen", "unseen"}
    assert compared["own", "plain"]["users"] == compared["own", "base"]["users"]
    assert found["agreement"] is None and found["users told from their states"]["unseen"]["users"] == 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png") == 2 and "user-03" in page and "own against others" in page
    asked_first = {image["prompt"] for image in found["images"][:4]}
    assert {item.prompt for item in read_media(tmp_path / "out" / "users-grid")} == asked_first  # in a drawn order
    assert {"users.png", "blend.png"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_a_judge_that_is_shown_choices_is_held_against_others(asked, base, run, people, tmp_path):
    images, rows = tmp_path / "table", []
    images.mkdir()
    for number, name in enumerate(NAMES):
        for i in range(5):  # two support pairs, three others
            row = {"prompt": f"{name} {i}", "user_id": name, "preference": 0.1 if i == 3 else 1.0}
            for side in ("chosen", "rejected"):
                file = images / f"{name}-{i}-{side}.png"
                draws = np.random.default_rng([number, i, side == "chosen"])
                Image.fromarray(draws.integers(0, 256, (16, 16, 3), np.uint8)).save(file)
                row[side] = file.name
            rows.append(row)
    (images / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    llava_onevision(tmp_path / "llava")
    judge = ChatJudge(path=str(tmp_path / "llava"), device="cpu", batch=8)
    shown = {**vars(asked), "judge": judge, "rivals": {}, "held_out": 2, "each": 1}
    with pytest.raises(UserError, match="the judge chat has to be shown pairs of the users"):
        run_personal(Personal(**shown), tmp_path / "out")
    source = Pairs(path=str(images / "pairs.jsonl"))
    found = run_personal(Personal(**{**shown, "pairs": source}), tmp_path / "out")
    assert found["agreement"]["pairs"] == 8 and set(found["agreement"]["users"]) == set(NAMES)
    assert "it agrees with them in" in (tmp_path / "out" / "report.html").read_text()
    users = Users.open(people)
    choices = Choices.of(users, plan_sittings(users, NAMES, asked.prompts.prompts, 1, 0), source)
    assert {choice.prompt for choice in choices.others["user-02"]} == {f"user-02 {i}" for i in (2, 3, 4)}
    assert [choice.prompt for choice in choices.support[users.draws_of("user-02")[0]]] == ["user-02 0"]
    for choice in choices.others["user-02"]:
        against = choice.prompt == "user-02 3"  # the label is against the order
        file = images / f"user-02-{choice.prompt[-1]}-{'rejected' if against else 'chosen'}.png"
        assert np.array_equal(choice.chosen, Image.open(file)), choice.prompt


@dataclass(frozen=True, kw_only=True)
class Brighter(UserJudge):
    """Somebody who likes light images."""

    name, needs_choices = "brighter", True

    @property
    def provenance(self):
        return {"judge": self.name}

    def judge(self, cases):
        return [float(np.mean(case.first) > np.mean(case.second)) for case in cases]


def test_a_judge_agrees_where_it_prefers_what_the_user_chose_in_either_order(asked):
    """Four of six choices are of the brighter image, and they are shown in turn as the first and as the second."""
    dark, bright = (Image.new("L", (8, 8), level) for level in (20, 200))
    chosen = [Choice(f"{i}", *((bright, dark) if i % 3 else (dark, bright))) for i in range(6)]
    sitting, known = Sitting("user-02", False, "x", 4, 6), Choices({4: ()}, {"user-02": chosen})
    for most, expected in ((6, 4 / 6), (2, 1 / 2)):
        found = _agreement(replace(asked, judge=Brighter(), held_out=most), [sitting], known)
        assert found["users"] == {"user-02": pytest.approx(expected)} and found["pairs"] == most


def test_images_of_other_states_are_other_images(asked, people, tmp_path, monkeypatch):
    """People may be embedded anew under their names: what is compared and shown is of the states of today."""
    told: list[dict] = []

    def note(out, command, settings, *_, **__):
        told.append(settings)
        if out.name == "users-grid":
            raise InterruptedError

    for module in (diffpo.generation.personal, diffpo.commands.personal):
        monkeypatch.setattr(module, "fill_folder", note)
    shutil.copytree(people, tmp_path / "users")

    def settings() -> list[dict]:
        told.clear()
        users = Users.open(tmp_path / "users")
        make_images(asked.options, users, [Sitting("user-00", True, "a", 0, 2)], tmp_path)
        with pytest.raises(InterruptedError):
            _draw(asked, users, tmp_path, "users", {"nobody": {}, "user-00": {"user-00": 1.0}}, ["a"], fresh=False)
        return list(told)

    before = settings()
    assert [each["label"] for each in before] == ["base", "own", "others", "users"] and settings() == before
    states = load_file(people / STATES)["states"]
    save_file({"states": states + 1}, tmp_path / "users" / STATES)
    assert [one == other for one, other in zip(before, settings(), strict=True)] == [True, False, False, False]


def test_whom_images_are_for_is_said_by_a_user_or_by_shares(run, people, tmp_path, capsys):
    known = {"users": str(people)}
    assert whom(str(run), "user-00", None, people, None) == known | {"blend": {"user-00": 1.0}}
    assert capsys.readouterr().out == ""
    told = whom(str(run), None, "user-00:3,user-01:1", people, None)
    assert told == known | {"blend": {"user-00": 0.75, "user-01": 0.25}}
    assert "do not sum to one; they count as user-00:0.75, user-01:0.25" in capsys.readouterr().out
    for user, blend in ((None, None), ("user-00", "user-01:1")):
        with pytest.raises(UserError, match="either --user NAME or --blend"):
            whom(str(run), user, blend, people, None)
    with pytest.raises(UserError, match="give it as --users"):
        whom(str(run), "user-00", None, None, None)
    (tmp_path / "config.yaml").write_text(f"data:\n  users: {people}\n")
    assert users_of(str(tmp_path)) == people == users_of(str(tmp_path / "final"))


def test_a_published_folder_embeds_somebody_new(run, people, tmp_path, monkeypatch):
    """Where the users that it was trained with are not: as they were embedded."""
    monkeypatch.setenv("DIFFPO_CACHE", str(tmp_path / "cache"))
    final = tmp_path / "published"
    shutil.copytree(run / "final", final)
    rows = []
    for i, vector in enumerate(([3.0, 0.0], [3.0, 8.0])):
        row = {"prompt": f"prompt {i}", "emb": vector}
        for side in ("chosen", "rejected"):
            row[side] = f"{i}-{side}.png"
            Image.new("RGB", (8, 8), (50 * i, 0, 99 * (side == "chosen"))).save(tmp_path / row[side])
        rows.append(row)
    (tmp_path / "dora.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = (str(final), "dora", None, None, str(tmp_path / "dora.jsonl"))
    with pytest.raises(UserError, match="give it as --users"):
        whom(*asked)
    Embedding(ColumnEmbedder(of="tiny")).write(people / EMBEDDER)
    copy_embedder(people, final)
    found = whom(*asked)
    users = Users.open(found["users"])
    assert found["blend"] == {"dora": 1.0} and list(users.draws) == ["dora"]
    assert users.states(0)[0].tolist() == pytest.approx([0.6, 0.8], abs=1e-3)
