"""`diffpo personal`: users judge what a model makes for them; and the demonstration that trains one."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import save_pipeline
from tiny_language import llava_onevision
from tiny_users import save_user_run, save_users

from diffpo.captioners.column import ColumnEmbedder
from diffpo.captioners.judges import ChatJudge, WorldJudge
from diffpo.commands.personal import Choices, Personal, run_personal
from diffpo.commands.users import users_of, whom
from diffpo.curate.embedding import Embedding
from diffpo.data import Pairs
from diffpo.errors import UserError
from diffpo.generation.personal import plan_sittings
from diffpo.generation.settings import GenerateOptions
from diffpo.media.folder import open_clip, read_media
from diffpo.media.prompts import load_prompts
from diffpo.media.users import EMBEDDER, Users, copy_embedder
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
            row = {"prompt": f"{name} {i}", "user_id": name}
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
