"""Processes that work for this one, where threads are not enough: all threads of a process share one interpreter.

    with helpers(task, 8) as pool:
        for result in ahead(perform, items, pool=pool, depth=32): ...     # `task(item)`, in order

Every process gets the task once, when it starts, and then one item after the other. None outlives the process that it
works for, however that one ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

from diffpo.errors import UserError

_task: Callable[[Any], Any]


def cores() -> int:
    """Cores that this process may use; processes that were launched together on a host share them."""
    there = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, there // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@contextmanager
def helpers(task: Callable[[Any], Any], count: int, *, remedy: str, modules: Sequence[str] = ()) -> Iterator[Executor]:
    """Start up to `count` processes that know `task`; `perform` asks one of them.

    They start from a fresh interpreter, not from a copy of this process: one that has used a GPU cannot be copied.

    Args:
        task: What they do with an item. It is sent to them, as items and results are.
        count: How many.
        remedy: What to do without them, for the message if one of them ends.
        modules: What the task needs beside its own module: imported once for all of them.

    Raises:
        UserError: One of them ended before its work was done.
    """
    how = multiprocessing.get_context("forkserver")
    how.set_forkserver_preload([type(task).__module__, *modules])
    pool = ProcessPoolExecutor(count, how, _begin, (task,))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise UserError(f"a process that worked for this one ended ({error}): is memory short? {remedy}") from error
    finally:
        pool.shutdown(cancel_futures=True)


def perform(item: Any) -> Any:
    """Do the task of this process with one item."""
    return _task(item)


def _begin(task: Callable[[Any], Any]) -> None:
    global _task
    _task = task
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes; the first one decides
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
