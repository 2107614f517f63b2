"""Batches of encoded pairs that lie in shards, on this machine or in an object store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffpo.core.types import Pair, PairBatch
from diffpo.data.advice import how_to_get
from diffpo.data.encode import BOTH
from diffpo.data.loader import EncodedPair, PairLoader
from diffpo.data.plan import Schedule
from diffpo.data.records import Source
from diffpo.data.shards import KEPT, Index, Shards
from diffpo.data.storage import Storage
from diffpo.data.stream_plan import StreamSchedule
from diffpo.disk.rows import cache_home, digest
from diffpo.errors import UserError

EMPTY = digest("").hex()
"""The key of the empty caption, which every shard has."""


class StreamLoader(PairLoader):
    """Make batches from the shards of one split, on the CPU, in float32."""

    def __init__(
        self,
        storage: Storage,
        index: Index,
        split: str,
        source: Source,
        *,
        seed: int,
        caption_dropout: float,
        sides: Sequence[str] = BOTH,
        reads_segments: bool = False,
        rank: int = 0,
    ):
        """Find the groups of one size; no shard is opened.

        Args:
            storage: Where the shards lie.
            index: What is there.
            split: Which of its splits.
            source: `encoded_window`, and `cache_dir`, where shards from elsewhere are copied to.
            seed: What the latents' samples and the caption dropout depend on.
            caption_dropout: Probability that both captions of a pair become empty; 0 for held-out batches.
            sides: Sides that the method uses.
            reads_segments: Whether the method reads labels of latent frames.
            rank: This process, whose copies are its own.
        """
        held = index.splits[split]
        self._sides, self._seed, self.caption_dropout, self._draw = tuple(sides), seed, caption_dropout, int
        self._users, self._reads_segments, self._window = None, reads_segments, source.encoded_window
        self.counts, self._updates_ahead = held.counts, 1
        self.broken = dict.fromkeys(range(sum(shard.broken for shard in held.shards)), "")
        self._starts = np.cumsum([0, *(shard.rows for shard in held.shards)])
        self._sizes = [shard.size for shard in held.shards]
        changes = [i for i in range(1, len(self._sizes)) if self._sizes[i] != self._sizes[i - 1]]
        self._edges = [0, *changes, len(self._sizes)]
        self.groups = tuple(  # pyright: ignore[reportAttributeAccessIssue]
            range(self._starts[a], self._starts[b]) for a, b in zip(self._edges, self._edges[1:], strict=False)
        )
        self.identity = held.identity
        home = cache_home(source.cache_dir) / "streams" / digest(storage.address, split, str(rank)).hex()
        self._shards = Shards(storage, held.shards, Path(home), max(KEPT, 3 * self._window * len(self.groups)))

    def schedule(self, world: int, micro_steps: int, micro_batch: int) -> StreamSchedule:
        """The plan of a run, for so many processes, micro-batches of each, and pairs in one."""
        rows = [np.diff(self._starts[a : b + 1]) for a, b in zip(self._edges, self._edges[1:], strict=False)]
        cut = {"world": world, "micro_steps": micro_steps, "micro_batch": micro_batch}
        return StreamSchedule(self._seed, self.groups, shards=tuple(rows), window=self._window, **cut)

    def _expect(self, schedule: Schedule, update: int) -> None:
        assert isinstance(schedule, StreamSchedule)
        self._shards.expect(schedule.coming(update))

    def _read(self, index: Sequence[int]) -> list[EncodedPair]:
        numbers = np.searchsorted(self._starts, index, side="right") - 1
        return [self._pair(row, shard) for row, shard in zip(index, numbers.tolist(), strict=True)]

    def _pair(self, row: int, number: int) -> EncodedPair:
        """A row of a shard, where keys stand for captions."""
        shard = self._shards[number]
        found = shard[row - int(self._starts[number])]
        return EncodedPair(found.tensors, found.values["captions"], lambda key: shard.text(key or EMPTY), found.values)

    def _labels_ahead(self, rows: np.ndarray) -> PairBatch | None:
        """Labels of segments lie beside the encodings, and are read with them; nothing else is to be known ahead."""
        if self._reads_segments:
            return None
        return PairBatch(Pair(None, None), Pair(None, None), torch.ones(len(rows)), torch.from_numpy(rows))

    def _labels_of(self, index: Tensor, rows: Sequence[EncodedPair]) -> dict[str, Any]:
        told = [row.values for row in rows]
        return {
            "preference": torch.tensor([each["preference"] for each in told]),
            "weight": torch.tensor([each["weight"] for each in told]) if "weight" in told[0] else None,
            "segments": torch.tensor([each["segments"] for each in told]) if self._reads_segments else None,
        }


def check_recipe(index: Index, recipe: Mapping[str, Any], table: Mapping[str, Any], address: str) -> None:
    """Check that what lies in shards is of the table that a config names, and was encoded as it says.

    Raises:
        UserError: It was not; the message names what differs.
    """
    here, there = dict(recipe), index.recipe | index.table
    if index.table:
        here |= table
    if differ := [name for name in here if there.get(name) != here[name]]:
        told = "; ".join(f"{name} is {here[name]!r} here and {there.get(name)!r} there" for name in differ)
        raise UserError(
            f"{address} was encoded with other settings: {told}. Train with those, or encode with these: "
            "`diffpo data encode CONFIG --out ANOTHER`"
        )


def check_columns(index: Index, split: str, needed: frozenset[str], address: str, *, refuses_opposite: bool) -> None:
    """Check that shards hold what a method needs (as `splits.check_requires` and `check_order` do of a table).

    Raises:
        UserError: A column is missing, or labels disagree with the order for a method that does not read them.
    """
    if missing := sorted(needed - set(index.columns)):
        raise UserError(
            f"this method needs the columns {', '.join(missing)}; the table of {address} had "
            f"{', '.join(index.columns)}. {how_to_get(missing, needed, 'TABLE')}, and encode it again, or choose "
            "method=dpo."
        )
    against = sum(shard.against for shard in index.splits[split].shards)
    if against and refuses_opposite:
        raise UserError(
            f"{against} rows of {address} have a preference below 0.5: their label disagrees with their order, and "
            "this method does not read the column. Exchange chosen and rejected in the table, and encode it again."
        )
