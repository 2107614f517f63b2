"""Two terminals with the same command: one trains, the other one says who does, and nothing is lost."""

from __future__ import annotations

import os

import pytest
from runs import World, assert_same, contents, launch

from diffpo.disk.lock import sole_writer
from diffpo.errors import UserError

RUN = {"train.steps": 4, "train.batch": 2, "train.checkpoint_every": 1, "train.ema": 0.9}


@pytest.mark.slow
def test_ten_times_two_terminals(tmp_path):
    world = World.make(tmp_path)
    world.train("whole", RUN)
    names = [f"twice-{i}" for i in range(10)]
    jobs = [{"argv": ["train", str(world.write(name, RUN))], "terminals": 2} for name in names]
    for name, answer in zip(names, launch(jobs, tmp_path / "jobs.json"), strict=True):
        assert sorted(answer["code"]) == [0, 2], answer["text"]
        assert f"{name} is being written by" in answer["text"] and "Wait until it has finished" in answer["text"]
        assert_same(contents(tmp_path / "whole"), contents(tmp_path / name))


def test_the_second_one_says_who_holds_the_folder_and_touches_nothing(tmp_path):
    world = World.make(tmp_path)
    with sole_writer(tmp_path / "held", "diffpo train"):
        with pytest.raises(UserError, match=rf"held is being written by `diffpo train` \(process {os.getpid()} on "):
            world.train("held", {"model.path": "./no-such-model"})
        assert not (tmp_path / "held").exists()
        (tmp_path / "link").symlink_to(tmp_path / "held")
        with pytest.raises(UserError, match="is being written by"):
            world.train("link")
    world.train("held", {"train.steps": 1})


def test_several_processes_of_one_run_are_one_writer(tmp_path):
    """The first process holds the folder; the others learn of a refusal, and none waits."""
    world = World.make(tmp_path)
    job = {"argv": ["train", str(world.write("held", RUN))], "processes": 2, "env": {"ACCELERATE_USE_CPU": "true"}}
    with sole_writer(tmp_path / "held", "diffpo train"):
        (answer,) = launch([job | {"seconds": 60}], tmp_path / "jobs.json")
    assert answer["code"] == 2
    assert answer["text"].count("held is being written by `diffpo train`") == 2  # each process says so
