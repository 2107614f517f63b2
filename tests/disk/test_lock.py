"""One writer at a time."""

import os
import signal

import pytest

from diffpo.disk.lock import sole_writer
from diffpo.errors import UserError


def test_the_second_writer_is_told_who_holds_the_place(tmp_path):
    with sole_writer(tmp_path / "run", "diffpo train"):
        told = rf"`diffpo train` \(process {os.getpid()} on .*since 20"
        with pytest.raises(UserError, match=told), sole_writer(tmp_path / "run", "diffpo train"):
            raise AssertionError("two writers")
        with sole_writer(tmp_path / "other", "diffpo train"):
            pass
    with sole_writer(tmp_path / "run", "diffpo train"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_kill_lets_go(tmp_path):
    child = os.fork()
    if not child:
        with sole_writer(tmp_path / "run", "diffpo train"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / ".run.lock").exists()
    with sole_writer(tmp_path / "run", "diffpo train"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_short_work_can_wait_for_its_turn(tmp_path):
    """Ten processes add one each to a number in a file; without the lock some additions would be lost."""
    (tmp_path / "n").write_text("0")
    children = []
    for _ in range(10):
        child = os.fork()
        if not child:
            try:
                with sole_writer(tmp_path / "n", "add", wait=30.0):
                    (tmp_path / "n").write_text(str(int((tmp_path / "n").read_text()) + 1))
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    assert (tmp_path / "n").read_text() == "10"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    place = tmp_path / "file" / "run"
    with pytest.raises(UserError, match="choose another place"), sole_writer(place, "diffpo train"):
        raise AssertionError("no such place")
