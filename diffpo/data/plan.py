"""Which pairs an update learns from: arithmetic on (seed, epoch, step), with no state to save.

An epoch is cut into effective batches of `world * micro_steps * micro_batch` pairs that all have one image size: the
rows of each size are permuted and cut, what does not fill a batch waits for another epoch's permutation, and the
batches are put into a random order. (Without buckets there is one size: one permutation, cut.) The content of an
effective batch depends on its size alone, so one process with 8 pairs, two with 4 and eight micro-batches of 1 learn
from the same pairs, and every micro-batch holds one image size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from diffpo.errors import UserError


def epoch_batches(seed: int, epoch: int, groups: Sequence[np.ndarray], effective: int) -> np.ndarray:
    """Cut an epoch into effective batches, `[batches effective]` row numbers; `groups` are those of one image size."""
    draws = np.random.default_rng([seed, epoch])
    permuted = [draws.permutation(group) for group in groups]
    cut = [rows[: len(rows) // effective * effective].reshape(-1, effective) for rows in permuted]
    return draws.permutation(np.concatenate(cut))


@dataclass(frozen=True)
class Schedule:
    """The plan of a whole run."""

    seed: int
    groups: tuple[np.ndarray, ...]
    """Usable row numbers by image size (`PairLoader.groups`)."""
    world: int = 1
    """Processes."""
    micro_steps: int = 1
    """Micro-batches that a process runs per update."""
    micro_batch: int = 1
    """Pairs in a micro-batch."""

    def __post_init__(self) -> None:
        if self.updates_per_epoch:
            return
        rows = " + ".join(str(len(group)) for group in self.groups)
        sizes = " (by image size; a batch holds one size)" if len(self.groups) > 1 else ""
        raise UserError(
            f"The table has {rows} usable pairs{sizes}, fewer than one effective batch of {self.effective} "
            f"({self.world} processes x {self.micro_steps} micro-batches x {self.micro_batch} pairs). Make the batch "
            "smaller, or the table larger."
        )

    @property
    def effective(self) -> int:
        """Pairs in an effective batch."""
        return self.world * self.micro_steps * self.micro_batch

    @cached_property
    def updates_per_epoch(self) -> int:
        """Updates in one pass over the table."""
        return sum(len(group) // self.effective for group in self.groups)

    @property
    def never_used(self) -> int:
        """Pairs of image sizes that are too rare to fill a batch: they are not learned from in any epoch."""
        return sum(len(group) for group in self.groups if len(group) < self.effective)

    def position(self, update: int) -> tuple[int, int]:
        """Return epoch and step within it of the run's update number `update`, counted from 0."""
        return divmod(update, self.updates_per_epoch)

    def indices(self, update: int, rank: int) -> np.ndarray:
        """Return `[micro_steps micro_batch]` row numbers that process `rank` uses in an update."""
        epoch, step = self.position(update)
        return self._epoch(epoch)[step].reshape(self.micro_steps, self.world, self.micro_batch)[:, rank]

    @cached_property
    def _epoch(self) -> Callable[[int], np.ndarray]:
        """Cut an epoch as `epoch_batches` does, remembering the last two: one may be read ahead."""
        return lru_cache(maxsize=2)(lambda epoch: epoch_batches(self.seed, epoch, self.groups, self.effective))
