"""Checkpoints in the background: updates go on, what is written is the state as it was, and errors reach the user."""

from __future__ import annotations

import errno
import threading
import time

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
def order():
    """What the straight run did, one after the other."""
    return []


@pytest.fixture(scope="module")
def straight(world, order):
    """What a run holds whose updates waited for its checkpoints, which took their time."""
    save, step = checkpoint.save_file, updates.step_optimizer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_file", lambda *a: order.append(time.sleep(0.03)) or save(*a))
        patch.setattr(updates, "step_optimizer", lambda *a: order.append("update") or step(*a))
        return contents(world.train("straight", SETTINGS))


def test_updates_wait_for_a_checkpoint_where_it_is_not_written_in_the_background(straight, order):
    assert straight and order == [*["update"] * 2, *[None] * 3] * 2, "None is one of three files"


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
    monkeypatch.setattr("diffpo.training.train.due", failing_after(3, RuntimeError("the third update")))
    with pytest.raises(RuntimeError, match="the third update"):
        world.train("error", SETTINGS | BEHIND)
    assert checkpoints(world.folder / "error") == ["step-000002"]


def test_an_error_of_the_checkpoint_is_told_beside_that_of_the_run(world, third, monkeypatch, capfd):
    def write(content, path):
        third.wait(60)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", write)
    monkeypatch.setattr("diffpo.training.train.due", failing_after(3, RuntimeError("the third update")))
    with pytest.raises(RuntimeError, match="the third update"):
        world.train("both", SETTINGS | BEHIND)
    assert "the disk is full" in capfd.readouterr().err


def test_a_second_ctrl_c_gives_the_checkpoint_up(world, monkeypatch):
    """Between two of its files; the first one waits until then."""
    flags, save, save_file = [], checkpoint.save, checkpoint.save_file

    def save_whole(*args, given_up, **more):
        flags.append(given_up)
        return save(*args, given_up=given_up, **more)

    monkeypatch.setattr(checkpoint, "save", save_whole)
    monkeypatch.setattr(checkpoint, "save_file", lambda *a: flags[0].wait(5) and save_file(*a))
    monkeypatch.setattr("diffpo.training.train.due", failing_after(3, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        world.train("interrupted", SETTINGS | BEHIND)
    assert checkpoints(world.folder / "interrupted") == []


def test_an_error_is_told_long_before_the_next_checkpoint(world, monkeypatch):
    """Every update after it would be lost if the run went on."""

    def write(content, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", write)
    with pytest.raises(UserError, match="the disk is full"):
        world.train("late", SETTINGS | BEHIND | {"train.steps": 20, "train.checkpoint_every": 10})
    assert 10 <= len(metrics(world.folder / "late")) < 20


def failing_after(done, error):
    from diffpo.training.train import due

    def asked(every, now, config):
        if now == done:
            raise error
        return due(every, now, config)

    return asked
