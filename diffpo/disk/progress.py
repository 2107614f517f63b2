"""Progress of long work, on standard error: a bar in a terminal, elsewhere a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

SECONDS = 30.0
"""Between two lines where there is no terminal."""


def stderr_console() -> Console:
    """The console that bars and notes go to: standard output stays free for results."""
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def progress(
    title: str, total: int, *, shown: bool = True, console: Console | None = None
) -> Iterator[Callable[[int], None]]:
    """Show how far some work has come, with its rate and the time that is left.

    Args:
        title: What is done: "Encoding".
        total: Pieces of work in all; nothing is shown where there are none.
        shown: False on processes that are to be silent.
        console: Where to; standard error by default.

    Yields:
        A function that is told how many more pieces are done.
    """
    console = console or stderr_console()
    shown = shown and total > 0 and not console.quiet
    with (_bar if shown and console.is_terminal else _lines)(title, total, console, shown) as advance:
        yield advance


def track(items: Iterable[T], title: str, total: int, *, shown: bool = True) -> Iterator[T]:
    """Iterate over `items` with progress; see `progress`."""
    with progress(title, total, shown=shown) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def _bar(title: str, total: int, console: Console, shown: bool) -> Iterator[Callable[[int], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    times = (TimeElapsedColumn(), "left", TimeRemainingColumn())
    with Progress(
        "{task.description}", BarColumn(), MofNCompleteColumn(), *times, console=console, transient=True
    ) as bar:
        task = bar.add_task(title, total=total)
        yield lambda pieces: bar.advance(task, pieces)


@contextmanager
def _lines(title: str, total: int, console: Console, shown: bool) -> Iterator[Callable[[int], None]]:
    began = last = time.monotonic()
    done = 0

    def advance(pieces: int) -> None:
        nonlocal done, last
        done += pieces
        now = time.monotonic()
        if shown and now - last >= SECONDS:
            last, rate = now, done / (now - began)
            left = f"{(total - done) / rate:.0f} s left" if rate else "no end in sight"
            console.print(f"{title}: {done} of {total}, {rate:.3g} per second, {left}", highlight=False, markup=False)

    yield advance
