"""Two terminals with the same command: one works, the other one says who does, and nothing is lost.

`scripts/campaign.py races` tries it for all of these commands by chance.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from runs import World, assert_same, contents, launch

from diffpo.disk.lock import sole_writer
from diffpo.errors import UserError
from diffpo.media.folder import Media, write_manifest
from diffpo.scorers import scores

RUN = {"train.steps": 4, "train.batch": 2, "train.checkpoint_every": 1, "train.ema": 0.9}

COMMANDS = {
    "generate": "generate {model} --prompts {prompts} --out {new} --steps 1",
    "evaluate": "evaluate {evaluation} output={new}",
    "score": "score {media} --scorer shapes",
    "data build": "data build {media} --scorer shapes --ties keep --out {new}",
    "data import": "data import {twins} --out {new}",
    "data score": "data score {pairs} --scorer shapes --out {new}",
    "data caption": "data caption {pairs} --captioner shapes --out {new}",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("terminals"))


@pytest.fixture(scope="module")
def known(world):
    """What the commands read, by name."""
    prompts, media = world.folder / "prompts.txt", world.folder / "media"
    prompts.write_text("a red circle\n")
    media.mkdir()
    for seed in range(2):
        Image.new("RGB", (64, 64), "red").save(media / f"{seed}.png")
    for side in "wl":
        (world.folder / "twins" / side).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(world.folder / "twins" / side / "0.png")
        (world.folder / "twins" / side / "0.txt").write_text("a caption")
    named = [Media(file=f"{i}.png", prompt="a red circle", prompt_id=0, seed=i, model="a") for i in range(2)]
    write_manifest(media, named)
    tree = {"models": {"a": str(world.folder / "sd15"), "b": str(world.folder / "sd15")}, "prompts": str(prompts)}
    evaluation = world.folder / "evaluation.yaml"
    evaluation.write_text(yaml.safe_dump(tree | {"scorers": ["shapes"], "sampling": {"steps": 1}}))
    places = {"model": world.folder / "sd15", "pairs": world.folder / "pairs" / "pairs.jsonl", "prompts": prompts}
    return places | {"media": media, "evaluation": evaluation, "twins": world.folder / "twins"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_terminal_says_who_holds_the_place_and_writes_nothing(name, known, tmp_path, monkeypatch, capsys):
    from diffpo.__main__ import main

    new, media = tmp_path / "new", known["media"]
    monkeypatch.setattr(scores, "WAIT", 0.0)
    monkeypatch.setattr(sys, "argv", ["diffpo", *COMMANDS[name].format(**known, new=new).split()])
    before = sorted(media.iterdir())
    place = scores.scores_file(media) if name == "score" else new
    with sole_writer(place, f"diffpo {name}"):
        held = sorted(media.iterdir())
        with pytest.raises(SystemExit, match="2"):
            main()
        said = " ".join(capsys.readouterr().err.split())
        assert f"{place} is being written by `diffpo {name}` (process {os.getpid()} on " in said
        assert said.count("Wait until it has finished") == 1 and "looks like a bug" not in said
        assert sorted(media.iterdir()) == held
    assert sorted(media.iterdir()) == before and written(new) == []


def written(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_two_terminals_train(world):
    world.train("whole", RUN)
    names = [f"twice-{i}" for i in range(4)]
    jobs = [{"argv": ["train", str(world.write(name, RUN))], "terminals": 2} for name in names]
    for name, answer in zip(names, launch(jobs, world.folder / "jobs.json"), strict=True):
        assert sorted(answer["code"]) == [0, 2], answer["text"]
        assert f"{name} is being written by" in answer["text"] and "Wait until it has finished" in answer["text"]
        assert_same(contents(world.folder / "whole"), contents(world.folder / name))


def test_the_second_one_says_who_holds_the_folder_and_touches_nothing(world):
    with sole_writer(world.folder / "held", "diffpo train"):
        with pytest.raises(UserError, match=rf"held is being written by `diffpo train` \(process {os.getpid()} on "):
            world.train("held", {"model.path": "./no-such-model"})
        assert not (world.folder / "held").exists()
        (world.folder / "link").symlink_to(world.folder / "held")
        with pytest.raises(UserError, match="is being written by"):
            world.train("link")
    world.train("held", {"train.steps": 1})


def test_several_processes_of_one_run_are_one_writer(world):
    """The first process holds the folder; the others learn of a refusal, and none waits."""
    job = {"argv": ["train", str(world.write("held", RUN))], "processes": 2, "env": {"ACCELERATE_USE_CPU": "true"}}
    with sole_writer(world.folder / "held", "diffpo train"):
        (answer,) = launch([job | {"seconds": 60}], world.folder / "jobs.json")
    assert answer["code"] == 2
    assert answer["text"].count("held is being written by `diffpo train`") == 2  # each process says so
