"""Threads that read ahead, in order, and one that writes behind."""

import itertools
import os
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")

WORKERS = min(8, os.cpu_count() or 1)
"""Threads that decode and read files."""
AHEAD = 512 * 2**20
"""Bytes that may lie ready before they are asked for."""
BEHIND = 16
"""Items that may wait to be written."""


def ahead(
    fn: Callable[[T], U],
    items: Iterable[T],
    *,
    depth: int,
    workers: int = 1,
    pool: Executor | None = None,
    weigh: Callable[[U], int] | None = None,
) -> Iterator[U]:
    """Yield `fn(item)` in the order of `items`, computed by threads at most `depth` items before they are asked for.

    Where results may be large, `weigh` gives the bytes of one. Then so few are computed before they are asked for that
    they take `AHEAD` bytes, if none is larger than those so far. A `pool` that the caller holds may stand in the place
    of `workers` threads.
    """
    waiting: deque[Future[U]] = deque()
    largest = 0
    with ThreadPoolExecutor(workers) if pool is None else nullcontext(pool) as pool:
        for item in items:
            waiting.append(pool.submit(fn, item))
            room = depth if weigh is None else min(depth, AHEAD // largest) if largest else 0
            while len(waiting) > room:
                result = waiting.popleft().result()
                largest = largest if weigh is None else max(largest, weigh(result))
                yield result
        while waiting:
            yield waiting.popleft().result()


def behind(items: Iterable[T], take: Callable[[Iterator[T]], object]) -> None:
    """Let another thread `take` items while this one makes them; at most `BEHIND` of them wait.

    What either of them raises is raised here, after the other one has stopped: `take` meets an `_Abandoned` where the
    items break off.
    """
    waiting: queue.Queue[T | object] = queue.Queue(BEHIND)
    end, broken = object(), object()

    def handed() -> Iterator[T]:
        while (item := waiting.get()) is not end:
            if item is broken:
                raise _Abandoned
            yield item  # pyright: ignore[reportReturnType]

    def hand(item: T | object) -> bool:
        """Whether the other thread is still there."""
        while not taken.done():
            try:
                waiting.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(take, handed())
        try:
            for item in items:
                if not hand(item):
                    break
            hand(end)
        except BaseException:
            hand(broken)
            raise
    taken.result()


class _Abandoned(Exception):
    """There are no more items, for a reason that another thread will tell."""


def groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cut what comes into lists of `size`, no earlier than they are asked for; the last may be shorter."""
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group
