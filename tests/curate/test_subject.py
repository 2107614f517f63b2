"""`diffpo data subject`: photographs of a subject become the pair table that RPO and DreamBooth's loss learn from."""

import contextlib
import io
import json
import math
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image
from runs import ROOT, World, metrics
from tiny_clips import write_align
from typer.testing import CliRunner

from diffpo.__main__ import main
from diffpo.commands.app import app
from diffpo.commands.subject import released_reward
from diffpo.compare.in_loop import in_loop
from diffpo.config.options import make_scorer
from diffpo.config.run import build, load_config
from diffpo.data import Pairs
from diffpo.data.splits import load_splits
from diffpo.errors import UserError
from diffpo.media.frames import decode
from diffpo.media.subjects import JUDGED, LEARNED, SELECTING
from diffpo.training.train import train

T = 0.01


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny model, a tiny ALIGN, two photographs, and the table that was made of them."""
    folder = tmp_path_factory.mktemp("subject")
    World.make(folder)
    write_align(folder / "align")
    (folder / "dog").mkdir()
    for seed in range(2):
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "dog" / f"{seed}.png")
    (folder / "prompts.txt").write_text("a {} on a hill\na {} in a box\n")
    done = CliRunner().invoke(app, command(folder), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (folder / "said.txt").write_text(done.output)
    return folder


def reward(folder, weight=0.3):
    spec = released_reward(folder / "dog", "sks") | {"image_weight": weight}
    for part in ("image", "text"):
        spec[part] |= {"model": str(folder / "align")}
    return make_scorer(spec)


def command(folder, *more, out="table", templates=True):
    parts = f"image={{name: clip-i, model: {folder}/align, references: {folder}/dog}}"
    parts += f",text={{name: clip, model: {folder}/align, without: sks}},image_weight=0.3"
    words = ["data", "subject", str(folder / "sd15"), str(folder / "dog"), "--class", "dog"]
    words += ["--out", str(folder / out), "--seeds", "0-2", "--sampling", "steps=1,guidance=1"]
    words += ["--scorer", f"lambda-harmonic,{parts}", "--temperature", str(T)]
    return [*words, *(["--prompts", str(folder / "prompts.txt")] if templates else []), *more]


def rows_of(folder, out="table"):
    return [json.loads(line) for line in (folder / out / "metadata.jsonl").read_text().splitlines()]


def test_a_label_is_that_of_its_own_two_images(home):
    """Each reward is computed anew from the very files that the row names, both for the image's prompt."""
    scorer, rows = reward(home), rows_of(home)
    assert len(rows) == 6 and [row["chosen"] for row in rows] == ["references/0.png", "references/1.png"] * 3
    for row in rows:
        images = [decode(home / "table" / row[side]) for side in ("chosen", "rejected")]
        chosen, rejected = scorer.score(images, [row["rejected_prompt"]] * 2).tolist()
        assert (row["chosen_score"], row["rejected_score"]) == pytest.approx((chosen, rejected), abs=1e-6)
        assert row["preference"] == pytest.approx(1 / (1 + math.exp((rejected - chosen) / T)), abs=1e-4)
        assert row["chosen_prompt"] == "a photo of sks dog" and row["prompt"] == row["rejected_prompt"]
    assert {row["prompt"] for row in rows} == {"a sks dog on a hill", "a sks dog in a box"}
    assert len({row["rejected"] for row in rows}) == 6 and len({row["preference"] for row in rows}) == 6


def test_what_both_parts_reach_is_measured(home):
    record = json.loads((home / "table" / "train.provenance.json").read_text())
    scorer, rows, ranges = reward(home), rows_of(home), record["measured ranges"]
    photos = [decode(home / "dog" / f"{i}.png") for i in range(2)]
    made = [(decode(home / "table" / row["rejected"]), row["prompt"]) for row in rows]
    like = scorer.image.score(photos, ["", ""]).mean().item()
    unlike = scorer.image.score([image for image, _ in made], [""] * 6).mean().item()
    assert ranges["image"] == pytest.approx([unlike, like], abs=1e-4)
    fit = scorer.text.score([image for image, _ in made], [prompt for _, prompt in made]).mean().item()
    astray = np.mean([scorer.text.score(photos, [prompt] * 2).mean().item() for prompt in {p for _, p in made}])
    assert ranges["text"] == pytest.approx([astray, fit], abs=1e-4)
    assert record["recipe"]["scorer"]["image"]["scorer"] == "clip-i" and record["recipe"]["temperature"] == T


def test_other_labels_of_the_same_images(home):
    """Nothing is drawn anew; a drawn label is 0 or 1, the same for the same seed."""
    shutil.copytree(home / "table", home / "sampled")
    before = {path.name: path.stat().st_mtime_ns for path in (home / "sampled").glob("*.png")}
    more = ("--labels", "sampled", "--temperature", "100")
    done = CliRunner().invoke(app, command(home, *more, out="sampled"), catch_exceptions=False)
    assert "metadata.jsonl (replaced an earlier file): 6 pairs" in done.output
    assert "(6 images were there)" in done.output
    first = [row["preference"] for row in rows_of(home, "sampled")]
    assert set(first) == {0.0, 1.0}
    (home / "sampled" / min(before)).unlink()
    (home / "sampled" / "metadata.jsonl").unlink()
    done = CliRunner().invoke(app, command(home, *more, out="sampled"), catch_exceptions=False)
    assert "(5 images were there)" in done.output, "what a killed call has made is kept"
    assert [row["preference"] for row in rows_of(home, "sampled")] == first
    after = {path.name: path.stat().st_mtime_ns for path in (home / "sampled").glob("*.png")}
    assert {name for name in before if after[name] != before[name]} == {min(before)}


def test_our_prompts_share_none(home):
    assert len({*LEARNED, *SELECTING, *JUDGED}) == len(LEARNED) + len(SELECTING) + len(JUDGED) == 32
    words = command(home, "--seeds", "0", "--caption", "one {}", "--token", "zz", out="ours", templates=False)
    words += ["--drawn-as", "dog"]
    (home / "dog" / "1.txt").write_text("a {} on a sofa\n")
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    (home / "dog" / "1.txt").unlink()
    found = [row["chosen_prompt"] for row in rows_of(home, "ours")]
    assert found == ["one zz dog", "a zz dog on a sofa"] * 4, "a text beside a photograph is its caption"
    found = [row["rejected_prompt"] for row in rows_of(home, "ours")]
    assert found == [template.replace("{}", "dog") for template in LEARNED], "the model's images are of any dog"
    for name, templates in (("select.txt", SELECTING), ("heldout.txt", JUDGED)):
        found = (home / "ours" / name).read_text().splitlines()
        assert found == [template.replace("{}", "zz dog") for template in templates]
    overrides = done.output.rsplit("next: diffpo train ", 1)[1].split()
    config = load_config(overrides[0], overrides[1:])
    assert config.train.select.prompts == str(home / "ours" / "select.txt")
    assert config.train.select.scorer.text.without == "zz"
    assert config.train.select.scorer.image.references == str(home / "ours" / "references")


def run(home, output, method, **changes):
    tree = yaml.safe_load((ROOT / "configs" / "sd21-rpo.yaml").read_text())
    tree["model"] = {"name": "lora", "path": str(home / "sd15")}
    tree["method"] = method
    tree["data"] |= {"path": str(home / "table"), "resolution": 16}
    select = tree["train"]["select"] | {"prompts": ["a sks dog on the moon"], "seeds": [0], "every": 1}
    for part in ("image", "text"):
        select["scorer"][part]["model"] = str(home / "align")
    select["scorer"]["image"]["references"] = str(home / "table" / "references")
    tree["train"] |= {"steps": 4, "learning_rate": 0.3, "mixed_precision": "no", "select": select, "seed": 1}
    tree["train"] |= {"output": str(home / output)} | changes
    tree["sample"] = {"steps": 1, "guidance": 1}
    return train(build(tree))


@pytest.fixture(scope="module")
def chosen_by_reward(home):
    """A run of RPO whose update the reward chooses, and what it said."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        found = run(home, "rpo", {"name": "rpo"})
    return found, " ".join(said.getvalue().split())


def test_rpo_learns_from_it_and_the_reward_chooses_the_update(chosen_by_reward):
    found, said = chosen_by_reward
    scores = [line["select/score"] for line in metrics(found)]
    best = scores.index(max(scores)) + 1
    assert len(set(scores)) == 4 and best < 4, f"the last update would be exported anyway: {scores}"
    assert f"Selected update ({best})" in (found / "final" / "README.md").read_text()
    hands = in_loop([{"label": "mine", "tuned": str(found)}], ["mine"], [])
    assert set(hands) == {"lambda-harmonic", "clip-i", "clip"}, "the reward and both of its parts"
    assert "labelled the training pairs of mine and selected the update of mine" in hands["clip"]
    assert f"choosing it cost {4 - best} further updates and 4 images" in said


def test_the_photographs_alone_are_the_baseline(home, chosen_by_reward):
    """DreamBooth's loss from the same table: the same photographs, times and noises as RPO's anchor."""
    assert any(row["preference"] < 0.5 for row in rows_of(home))
    with pytest.raises(UserError, match=r"preference below 0\.5.*method\.sft_side=chosen"):
        run(home, "refused", {"name": "sft"}, steps=1, select=None)
    plain = run(home, "sft", {"name": "sft", "sft_side": "chosen"}, steps=1, select=None)
    assert metrics(plain)[0]["error/chosen"] == metrics(chosen_by_reward[0])[0]["error/chosen"]


def test_training_reads_both_captions(home):
    table = load_splits(Pairs(path=str(home / "table"), ties="keep")).train
    assert set(table.captions("chosen").to_pylist()) == {"a photo of sks dog"}
    assert set(table.captions("rejected").to_pylist()) == {"a sks dog on a hill", "a sks dog in a box"}


def test_mistakes_end_with_exit_code_2(home, monkeypatch, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    (tmp_path / "another").mkdir()
    shutil.copy(home / "dog" / "0.png", tmp_path / "another")
    (tmp_path / "another" / "0.txt").write_text("a dog on a hill")
    (tmp_path / "plain.txt").write_text("a dog on a hill\n")
    place = str(home / "dog")

    def given(*more, folder=place):
        words = command(home, *more, out="nothing")
        return [folder if word == place else word for word in words]

    for words, said in (
        (given(folder=str(tmp_path / "nowhere")), "there is no folder"),
        (given(folder=str(tmp_path / "empty")), "holds no reference picture of the subject"),
        (given(folder=str(tmp_path / "broken")), "a.png is no readable picture of the subject"),
        (given(folder=str(tmp_path / "another")), "0.png, 'a dog on a hill', does not name the subject"),
        (given("--token", "two words"), "must be one word"),
        (given("--class", " "), "the class of the subject is empty"),
        (given("--caption", "a photo"), "'a photo' has no {}"),
        (given("--prompts", str(tmp_path / "plain.txt")), "'a dog on a hill' has no {}"),
        (given("--temperature", "0"), "temperature is 0.0; it must be above 0"),
        (given("--labels", "hard"), "labels"),
        (given("--scorer", "clip-i"), "references: is missing"),
        (given("--scorer", f"clip-i,references={place}"), "clip-vit-base-patch16"),
    ):
        monkeypatch.setattr("sys.argv", ["diffpo", *words])
        with pytest.raises(SystemExit) as end:
            main()
        message = capsys.readouterr().err
        assert end.value.code == 2 and said in message and "Traceback" not in message, message
        assert not (home / "nothing").exists()
