"""Read ahead with threads, in order."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")

WORKERS = min(8, os.cpu_count() or 1)
"""Threads that decode and read files."""
AHEAD = 512 * 2**20
"""Bytes that may lie ready before they are asked for."""


def ahead(
    fn: Callable[[T], U], items: Iterable[T], *, workers: int, depth: int, weigh: Callable[[U], int] | None = None
) -> Iterator[U]:
    """Yield `fn(item)` in the order of `items`, computed by threads at most `depth` items before they are asked for.

    Where results may be large, `weigh` gives the bytes of one. Then so few are computed before they are asked for that
    they take `AHEAD` bytes, if none is larger than those so far.
    """
    waiting: deque[Future[U]] = deque()
    largest = 0
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append(pool.submit(fn, item))
            room = depth if weigh is None else min(depth, AHEAD // largest) if largest else 0
            while len(waiting) > room:
                result = waiting.popleft().result()
                largest = largest if weigh is None else max(largest, weigh(result))
                yield result
        while waiting:
            yield waiting.popleft().result()


def groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cut what comes into lists of `size`, no earlier than they are asked for; the last may be shorter."""
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group
