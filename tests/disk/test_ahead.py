"""Reading ahead and writing behind: in order, bounded, and an error on either side stops the other one."""

import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from diffpo.disk.ahead import BEHIND, ahead, behind
from diffpo.disk.processes import helpers, perform
from diffpo.errors import UserError


def test_another_thread_takes_what_this_one_makes():
    taken, made = [], []

    def items():
        for i in range(5 * BEHIND):
            made.append(i)
            yield i

    def take(handed):
        first = next(handed)
        time.sleep(0.05)
        assert len(made) <= BEHIND + 3, "no more wait than were allowed to"
        taken.extend([first, *handed])

    behind(items(), take)
    assert taken == list(range(5 * BEHIND))


def test_who_takes_may_stop_who_makes():
    made = []

    def items():
        for i in range(100 * BEHIND):
            made.append(i)
            yield i

    def take(handed):
        next(handed)
        raise UserError("the disk is full")

    with pytest.raises(UserError, match="the disk is full"):
        behind(items(), take)
    assert len(made) < 100 * BEHIND


def test_who_makes_may_stop_who_takes():
    """What was taken is not taken for all there is."""
    ended = []

    def items():
        yield 1
        raise UserError("not finite")

    def take(handed):
        list(handed)
        ended.append(True)

    with pytest.raises(UserError, match="not finite"):
        behind(items(), take)
    assert not ended


class Square:
    """The task of processes: it ends its process at one number."""

    def __call__(self, number: int) -> tuple[int, int]:
        if number < 0:
            os._exit(1)
        return number**2, os.getpid()


def test_processes_work_in_order_and_one_that_ends_is_told():
    with helpers(Square(), 2, remedy="Use threads.") as pool:
        found = list(ahead(perform, range(20), pool=pool, depth=4))
    assert [square for square, _ in found] == [i**2 for i in range(20)]
    assert os.getpid() not in {process for _, process in found}
    with (
        pytest.raises(UserError, match=r"a process that worked .* Use threads\."),
        helpers(Square(), 1, remedy="Use threads.") as pool,
    ):
        list(ahead(perform, [1, -1], pool=pool, depth=4))
    assert not multiprocessing.active_children()


ORPHANS = """
import os, signal
from diffpo.disk.processes import helpers, perform
from test_ahead import Square

if __name__ == "__main__":
    with helpers(Square(), 1, remedy="") as pool:
        print(pool.submit(perform, 1).result()[1], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_no_process_outlives_the_one_that_it_works_for(tmp_path):
    (tmp_path / "killed.py").write_text(ORPHANS)
    paths = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    done = subprocess.run(
        [sys.executable, tmp_path / "killed.py"], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}
    )
    assert done.returncode == -9, done.stderr
    until = time.monotonic() + 10
    while os.path.exists(f"/proc/{int(done.stdout)}") and time.monotonic() < until:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{int(done.stdout)}")
