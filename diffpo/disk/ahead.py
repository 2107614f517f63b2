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


def ahead(fn: Callable[[T], U], items: Iterable[T], *, workers: int, depth: int) -> Iterator[U]:
    """Yield `fn(item)` in the order of `items`, computed by threads at most `depth` items before they are asked for."""
    waiting: deque[Future[U]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append(pool.submit(fn, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cut what comes into lists of `size`, no earlier than they are asked for; the last may be shorter."""
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group
