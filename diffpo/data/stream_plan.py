"""Which pairs of shards an update learns from: arithmetic on (seed, epoch, update), with no state to save.

All rows in one random order would ask for every shard at once. So an epoch permutes the shards of each image size,
takes `window` of them at a time, and permutes the rows of a window:

    shards      5 2 | 0 4 | 1 3           permuted, two in a window
    rows        all rows of 5 and 2, permuted, then all rows of 0 and 4, ...

These streams, one for each size, are cut into effective batches, whose order mixes the sizes at random. Every row comes
once in an epoch, but for those at the end of a stream that fill no batch. As in `plan`, an effective batch depends on
its size alone: neither on the processes nor on where a run was stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from diffpo.data.plan import Schedule


@dataclass(frozen=True, kw_only=True)
class StreamSchedule(Schedule):
    """The plan of a run that learns from shards; `groups` are the ranges of row numbers of each image size."""

    shards: tuple[np.ndarray, ...]
    """For each group, the rows of its shards; row numbers go on from shard to shard, and from group to group."""
    window: int
    """Shards whose rows are permuted together."""

    def indices(self, update: int, rank: int) -> np.ndarray:
        """Return `[micro_steps micro_batch]` row numbers that process `rank` uses in an update."""
        epoch, step = self.position(update)
        group, number = self._mixed(epoch)[step]
        rows = self._rows(epoch, group, number * self.effective, (number + 1) * self.effective)
        return rows.reshape(self.micro_steps, self.world, self.micro_batch)[:, rank]

    def coming(self, update: int) -> list[int]:
        """Numbers of the shards that an update reads, in the order of all groups, and of those that come after them."""
        epoch, step = self.position(update)
        group, number = self._mixed(epoch)[step]
        ends, windows = self._windows(epoch, group)
        first = int(np.searchsorted(ends, number * self.effective, side="right"))
        last = int(np.searchsorted(ends, (number + 1) * self.effective - 1, side="right"))
        before = sum(len(rows) for rows in self.shards[:group])
        return [before + int(shard) for some in windows[first : last + 2] for shard in some]

    @cached_property
    def _mixed(self) -> Any:
        """`[updates 2]` of an epoch: the group of each update, and which batch of the group's stream it is."""

        def mix(epoch: int) -> np.ndarray:
            counts = [len(group) // self.effective for group in self.groups]
            kinds = np.random.default_rng([self.seed, epoch]).permutation(np.repeat(np.arange(len(counts)), counts))
            numbers = np.zeros_like(kinds)
            for kind, count in enumerate(counts):
                numbers[kinds == kind] = np.arange(count)
            return np.stack([kinds, numbers], axis=1)

        return lru_cache(maxsize=2)(mix)

    @cached_property
    def _windows(self) -> Any:
        """Where the windows of a group's stream end in an epoch, and the shards in each of them."""

        def cut(epoch: int, group: int) -> tuple[np.ndarray, list[np.ndarray]]:
            rows = self.shards[group]
            order = np.random.default_rng([self.seed, epoch, group]).permutation(len(rows))
            windows = [order[start : start + self.window] for start in range(0, len(order), self.window)]
            return np.cumsum([rows[some].sum() for some in windows]), windows

        return lru_cache(maxsize=2 * len(self.groups))(cut)

    @cached_property
    def _permuted(self) -> Any:
        """The row numbers of one window, permuted."""

        def permute(epoch: int, group: int, window: int) -> np.ndarray:
            starts = self.groups[group][0] + np.cumsum([0, *self.shards[group]])
            shards = self._windows(epoch, group)[1][window]
            rows = np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in shards])
            return np.random.default_rng([self.seed, epoch, group, window]).permutation(rows)

        return lru_cache(maxsize=2 * len(self.groups) + 2)(permute)

    def _rows(self, epoch: int, group: int, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` - 1 of a group's stream."""
        ends, _ = self._windows(epoch, group)
        parts, window = [], int(np.searchsorted(ends, start, side="right"))
        while start < stop:
            begins = int(ends[window - 1]) if window else 0
            part = self._permuted(epoch, group, window)[start - begins : stop - begins]
            parts.append(part)
            start, window = start + len(part), window + 1
        return np.concatenate(parts)
