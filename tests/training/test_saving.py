"""Checkpoints in the background: updates go on, what is written is the state as it was, and errors reach the user."""

from __future__ import annotations

import errno
import threading

import pytest
from runs import World, assert_same, checkpoints, contents, metrics

from diffpo.errors import UserError
from diffpo.training import checkpoint
from diffpo.training import update as updates

BEHIND = {"train.async_checkpoints": True}
SETTINGS = {
    "train.steps": 4,
    "train.batch": 2,
    "train.checkpoint_every": 2,
    "train.ema": 0.9,
    "train.schedule": "linear",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("saving"))


@pytest.fixture(scope="module")
def straight(world):
    """What a run holds whose updates waited for its checkpoints."""
    return contents(world.train("straight", SETTINGS))


@pytest.fixture
def third(monkeypatch):
    """Is set once the third update has changed the weights, while the second one's checkpoint may be on its way."""
    done, calls, step = threading.Event(), [], updates.step_optimizer

    def stepped(*args):
        step(*args)
        calls.append(args)
        if len(calls) == 3:
            done.set()

    monkeypatch.setattr(updates, "step_optimizer", stepped)
    return done


def test_updates_go_on_while_a_checkpoint_is_written(world, straight, third, monkeypatch):
    """The first file waits for an update that comes after it: it holds the state before that all the same."""
    waited, save = [], checkpoint.save_file
    monkeypatch.setattr(checkpoint, "save_file", lambda *a: waited.append(third.wait(60)) or save(*a))
    assert_same(straight, contents(world.train("behind", SETTINGS | BEHIND)))
    assert waited == [True] * 6, "three files for each of two checkpoints"


def test_what_cannot_be_written_is_said_and_the_run_goes_on_from_the_one_before(world, straight, third, monkeypatch):
    save, disk = checkpoint.save_file, ["free", "free", "free", "free", "full"]

    def write(content, path):
        if disk.pop(0) == "full":
            third.wait(60)
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, path)

    monkeypatch.setattr(checkpoint, "save_file", write)
    with pytest.raises(UserError, match=r"the disk is full: .*step-000002 could not be written"):
        world.train("full", SETTINGS | BEHIND | {"train.checkpoint_every": 1})
    run = world.folder / "full"
    assert checkpoints(run) == ["step-000001"] and len(metrics(run)) == 3, "said after the update that went on"
    monkeypatch.undo()
    again = contents(world.train("full", SETTINGS | BEHIND | {"train.checkpoint_every": 1, "train.keep_last": 1}))
    newest = {name: value for name, value in straight.items() if "step-000002" not in name}
    assert_same(newest, again)


def test_an_error_of_the_run_lets_the_checkpoint_become_whole(world, third, monkeypatch):
    save = checkpoint.save_file
    monkeypatch.setattr(checkpoint, "save_file", lambda *a: third.wait(60) and save(*a))
    monkeypatch.setattr("diffpo.training.train.due", failing_after(3))
    with pytest.raises(RuntimeError, match="the third update"):
        world.train("error", SETTINGS | BEHIND)
    assert checkpoints(world.folder / "error") == ["step-000002"]


def failing_after(done):
    from diffpo.training.train import due

    def asked(every, now, config):
        if now == done:
            raise RuntimeError("the third update")
        return due(every, now, config)

    return asked
