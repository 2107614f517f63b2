"""As many rows at a time as a device holds."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")
U = TypeVar("U")


class Fitting:
    """Runs work on so many rows at a time; half as many, from then on, each time that a GPU's memory is full."""

    def __init__(self, most: int):
        """Begin with `most` rows."""
        self.most = most

    def run(self, work: Callable[[Sequence[T]], Sequence[U]], rows: Sequence[T]) -> list[U]:
        """Do work on all rows, and return all that it returns.

        Raises:
            torch.OutOfMemoryError: A single row does not fit.
        """
        made: list[U] = []
        done = 0
        while done < len(rows):
            part = rows[done : done + self.most]
            try:
                made += work(part)
                done += len(part)
                continue
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
                self.most = (len(part) + 1) // 2
            gc.collect()  # out here, where the error no longer holds what it was raised over
            torch.cuda.empty_cache()
        return made
