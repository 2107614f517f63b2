"""SIGTERM and SIGINT: a run writes a checkpoint, says so and ends; the same command goes on bit for bit."""

from __future__ import annotations

import signal

import pytest
from runs import World, assert_same, checkpoints, contents, launch, metrics

pytestmark = pytest.mark.slow

RUN = {
    "data.validation_fraction": 0.2,
    "train.steps": 6,
    "train.batch": 2,
    "train.ema": 0.9,
    "train.checkpoint_every": 2,
    "train.eval_every": 3,
    "train.eval_pairs": 6,
    "train.sample_every": 3,
    "sample.prompts": ["thing 1"],
}
STOPPED = {
    "encoding": (signal.SIGTERM, 0, 0),
    "step": (signal.SIGTERM, 0, 4),
    "sampling": (signal.SIGTERM, 0, 3),
    "checkpoint": (signal.SIGTERM, 0, 5),  # the one after 4 updates is finished first
    "interrupt": (signal.SIGINT, 130, 4),
    "two processes": (signal.SIGTERM, 0, 4),
}
"""The signal, the exit code, and the updates that are done then."""
CPU = {"ACCELERATE_USE_CPU": "true"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("stopped"), rows=200)


@pytest.fixture(scope="module")
def stopped(world):
    whole = world.write("whole", RUN | {"data.cache_dir": str(world.folder / "cache")})
    jobs = [{"argv": ["train", str(whole)]}]
    for name, (number, _, _) in STOPPED.items():
        cache = str(world.folder / ("cache-new" if name == "encoding" else "cache"))
        both = name == "two processes"
        changes = RUN | {"data.cache_dir": cache, "train.batch": 1 if both else 2}
        changes |= {"train.async_checkpoints": True} if name in ("step", "two processes") else {}
        place = "step" if name in ("interrupt", "two processes") else name
        job = {"argv": ["train", str(world.write(name, changes))], "signal": [place, int(number)], "seconds": 120}
        jobs.append(job | ({"processes": 2, "env": CPU} if both else {}))
    done = launch(jobs, world.folder / "stop.json")
    assert done[0]["code"] == 0, done[0]["text"]
    left = {name: checkpoints(world.folder / name) if name != "encoding" else [] for name in STOPPED}
    return dict(zip(STOPPED, done[1:], strict=True)), left, jobs


@pytest.fixture(scope="module")
def resumed(world, stopped):
    again = [{key: value for key, value in job.items() if key != "signal"} for job in stopped[2][1:]]
    done = launch(again, world.folder / "again.json")
    assert [job["code"] for job in done] == [0] * len(done), [job["text"] for job in done]
    return dict(zip(STOPPED, done, strict=True))


@pytest.mark.parametrize("name", STOPPED)
def test_it_writes_a_checkpoint_and_says_so(world, stopped, name):
    number, code, updates = STOPPED[name]
    answer, left = stopped[0][name], stopped[1][name]
    assert answer["code"] == code, answer["text"]
    assert answer["text"].count(f"stopped by {number.name}: ") == 1
    assert "The same command goes on from there." in answer["text"]
    if updates:
        assert left[-1] == f"step-{updates:06d}"
        assert f"checkpoints holds all {updates} of 6 updates" in answer["text"]
    assert not (world.folder / name / "final").exists()


@pytest.mark.parametrize("name", [name for name in STOPPED if name != "two processes"])
def test_the_same_command_ends_as_if_nothing_had_happened(world, resumed, name):
    assert_same(contents(world.folder / "whole"), contents(world.folder / name))


def test_processes_stop_and_go_on_together(world, resumed):
    assert [line["step"] for line in metrics(world.folder / "two processes")] == [1, 2, 3, 4, 5, 6]


def test_encodings_that_were_finished_stay(world, stopped, resumed):
    assert len(list((world.folder / "cache-new").rglob("*.arrow"))) == len(
        list((world.folder / "cache").rglob("*.arrow"))
    )


def test_the_log_without_a_terminal_tells_what_happens(stopped, resumed):
    text = stopped[0]["step"]["text"]
    for told in ("new, 6 updates in all", "step: update 1 of 6, loss ", "step: judging the held-out pairs", "pairs/s"):
        assert told in text, text
    assert "parameters are trained" in text and "epochs in all" in text and "held out to judge" in text
    assert "step: sampling" in text and "step: writing a checkpoint" in text
    assert "resumed from update 4, 6 updates in all" in resumed["step"]["text"]
