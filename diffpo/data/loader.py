"""From row numbers to a `PairBatch`: read or make the encodings, sample the latents, drop captions, stack."""

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffpo.core.types import Condition, Pair, PairBatch, Rng
from diffpo.data.encode import BOTH, Encodings
from diffpo.data.plan import Schedule
from diffpo.data.records import HASHED_ROWS, PART_ROWS, Counts, Table
from diffpo.data.segments import SegmentLabels
from diffpo.data.users import RowUsers
from diffpo.disk.ahead import ahead
from diffpo.errors import UserError

log = logging.getLogger(__name__)
NAMED = 20
"""Broken rows that a log message names."""


@dataclass(frozen=True)
class EncodedPair:
    """The encodings of one row."""

    images: Mapping[str, Tensor]
    """Of both sides: `{side}_mean`, ... (`encode_frames`)."""
    captions: Mapping[str, str]
    """By side: the caption, or what stands for it."""
    text: Callable[[str], dict[str, Tensor]]
    """States of a caption, or of the empty one, ""."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """What else is kept of the row."""


class MicroBatches(Sequence[PairBatch]):
    """The micro-batches of an update: their labels at once, themselves one after the other.

    They come as they are read ahead, so that few are in memory at a time; asked for again, each is made anew.
    """

    def __init__(
        self, labels: Sequence[PairBatch], make: Callable[[int], PairBatch], coming: Iterator[PairBatch]
    ) -> None:
        """Take the labels (without images), what makes a batch by its number, and the batches that come."""
        self.labels, self._make = labels, make
        self._first, self._coming = next(coming), enumerate(coming, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> PairBatch:
        return self._make(range(len(self))[number]) if number else self._first

    def __iter__(self) -> Iterator[PairBatch]:
        yield self._first
        for number in range(1, len(self)):
            found, batch = next(self._coming, (0, None))
            yield batch if batch is not None and found == number else self._make(number)


class PairLoader:
    """Make batches from a table and its encodings, on the CPU, in float32."""

    groups: tuple[np.ndarray, ...]
    """Usable row numbers by image size."""
    identity: str
    """Changes with the rows: their number, images, sizes, captions and labels."""
    table: Table
    """The pairs."""
    encodings: Encodings
    """What the batches are made of."""
    counts: Counts
    """What became of the table's rows."""
    broken: Mapping[int, str]
    """Rows whose images cannot be used, and why."""
    trajectories: Callable[[Sequence[int], Sequence[bool]], Pair[Tensor]] | None = None
    """Reads kept inversions that every batch is to carry, `[b n c f h w]` of each side: for rows with their captions
    or, where dropped, without."""
    reference_errors: Callable[[Sequence[int], int], Pair[Tensor]] | None = None
    """Reads the reference's errors that every batch is to carry, `[b f]` of each side: for rows, and one of their
    draws."""

    def __init__(
        self,
        table: Table,
        encodings: Encodings,
        *,
        seed: int,
        caption_dropout: float,
        sides: Sequence[str] = BOTH,
        labels: SegmentLabels | None = None,
        draw: Callable[[int], int] = int,
        users: RowUsers | None = None,
    ):
        """Read the small columns and say which rows are broken.

        Args:
            table: The pairs.
            encodings: Their encodings, made for the same `sides`.
            seed: What the latents' samples and the caption dropout depend on.
            caption_dropout: Probability that both captions of a pair become empty; 0 for held-out batches.
            sides: Sides that the method uses; the other one is None in every batch.
            labels: Of the latent frames, for a method that reads them.
            draw: The epoch whose random numbers an epoch takes: its own, unless there are draws that come back.
            users: Whose pairs the rows are, for a model that is told the user; some rows cannot be used then.

        Raises:
            UserError: Every row is broken, or cannot be used.
        """
        self.table, self.encodings, self._sides = table, encodings, tuple(sides)
        self.counts, self.broken = table.counts, encodings.broken
        self._updates_ahead = encodings.read_ahead
        self._seed, self.caption_dropout, self._draw = seed, caption_dropout, draw
        names = table.rows.column_names
        self._preference = torch.ones(len(table))
        if "preference" in names:
            self._preference = torch.from_numpy(table.arrow("preference").to_numpy().astype(np.float32))
        self._weight = None
        if "weight" in names:
            self._weight = torch.from_numpy(table.arrow("weight").to_numpy().astype(np.float32))
        self._labels, self._segmented, self._users = labels, "segments" in names, users
        self.groups = group_rows(encodings, () if users is None else users.left_out)
        self.identity = self._identify()
        if encodings.broken:
            log.warning(describe_broken(table, encodings.broken))
        if not self.groups:
            raise UserError(
                f"None of the pairs of {table.path} has usable images. {describe_broken(table, encodings.broken)}"
            )

    def _identify(self) -> str:
        state = hashlib.blake2b(digest_size=16)
        table = self.table
        read = [(table.captions, side) for side in self._sides] + [(table.arrow, "segments")] * self._segmented
        for column in read:
            for number, part in enumerate(table.in_parts(*column)):  # what `repr` says of lists of `HASHED_ROWS`
                begins = number * PART_ROWS % HASHED_ROWS == 0
                state.update((("]" if number else "") + "[" if begins else ", ").encode() + repr(part)[1:-1].encode())
            state.update(b"]")
        weights = [] if self._weight is None else [self._weight.numpy()]
        for values in (self._preference.numpy(), *weights, *self.groups, *self.encodings.contents.values()):
            state.update(np.ascontiguousarray(values).tobytes())
        if self._users is not None:
            state.update(self._users.identity.encode())
        return state.hexdigest()

    def batch(self, indices: Sequence[int] | np.ndarray, epoch: int) -> PairBatch:
        """Make a batch of rows that have one image size: latents sampled, captions dropped now and then."""
        index, draw = torch.as_tensor(np.asarray(indices, np.int64)), self._draw(epoch)
        rng = Rng(self._seed, draw, index)
        dropped = (rng.uniform("caption_dropout") < self.caption_dropout).tolist()
        batch = self._make(index, dropped, lambda shape, side: rng.normal(shape, f"posterior/{side}"))
        if self._users is not None:
            states = self._users.states(Rng(self._seed, epoch, index))
            batch = replace(batch, cond=batch.cond.map(lambda told: replace(told, user=states)))
        if self.trajectories is not None:
            batch = replace(batch, trajectory=self.trajectories(index.tolist(), dropped))
        if self.reference_errors is not None:
            batch = replace(batch, reference_error=self.reference_errors(index.tolist(), draw))
        return batch

    def both_ways(self, index: int) -> PairBatch:
        """Make a batch of one row twice, with its captions and without, of the posterior's modes."""
        return self._make(torch.tensor([index, index]), [False, True], lambda shape, side: torch.zeros(2, *shape))

    def _make(self, index: Tensor, dropped: list[bool], noise: Callable[[Sequence[int], str], Tensor]) -> PairBatch:
        rows = self._read(index.tolist())
        latent, cond, texts = dict.fromkeys(BOTH), dict.fromkeys(BOTH), {}
        for side in self._sides:
            latent[side] = torch.stack([row.images[f"{side}_mean"] for row in rows]).float()
            if f"{side}_std" in rows[0].images:  # clips have none
                std = torch.stack([row.images[f"{side}_std"] for row in rows]).float()
                latent[side] += std * noise(std.shape[1:], side)
            captions = tuple("" if drop else row.captions[side] for row, drop in zip(rows, dropped, strict=True))
            if captions not in texts:
                told = [as_condition(row.text(caption)) for row, caption in zip(rows, captions, strict=True)]
                texts[captions] = Condition.cat(told)
            size = torch.stack([row.images[f"{side}_size"] for row in rows])
            cond[side] = replace(texts[captions], extra=texts[captions].extra | {"size": size})
        return PairBatch(Pair(**latent), Pair(**cond), index=index, **self._labels_of(index, rows))

    def _read(self, index: Sequence[int]) -> list[EncodedPair]:
        """Read the encodings of rows."""
        said = {side: self.table.captions(side, index).to_pylist() for side in self._sides}
        captions = [dict(zip(said, each, strict=True)) for each in zip(*said.values(), strict=True)]
        text = self.encodings.text
        return [EncodedPair(self.encodings.images(i), own, text) for i, own in zip(index, captions, strict=True)]

    def _labels_of(self, index: Tensor, rows: Sequence[EncodedPair]) -> dict[str, Any]:
        """What annotators said of rows, by the fields of a batch."""
        return {
            "preference": self._preference[index],
            "segments": None if self._labels is None else self._labels.rows(index.tolist()),
            "weight": None if self._weight is None else self._weight[index],
        }

    def updates(self, schedule: Schedule, start: int, stop: int, *, rank: int = 0) -> Iterator[Sequence[PairBatch]]:
        """Yield one process's micro-batches of updates `start` to `stop` - 1.

        While one is learned from, as many are read as an update has, as far as they take few bytes (`disk.ahead`).
        Encodings that are made, not read, are not made ahead.
        """

        def read(place: tuple[int, int]) -> PairBatch:
            update, number = place
            self._expect(schedule, update)
            return self.batch(schedule.indices(update, rank)[number], schedule.position(update)[0])

        count = schedule.micro_steps
        places = product(range(start, stop), range(count))
        depth = self._updates_ahead * count
        batches = iter(ahead(read, places, depth=depth, weigh=_bytes) if depth else map(read, places))
        for update in range(start, stop):
            coming = islice(batches, count)
            labels = [self._labels_ahead(rows) for rows in schedule.indices(update, rank)]
            if None in labels:
                yield list(coming)
            else:
                yield MicroBatches(labels, lambda number, update=update: read((update, number)), coming)
            deque(coming, maxlen=0)  # those that nobody asked for

    def _labels_ahead(self, rows: np.ndarray) -> PairBatch | None:
        """What annotators said of rows whose images are not read; None: it is read together with them."""
        index = torch.from_numpy(rows)
        return PairBatch(Pair(None, None), Pair(None, None), index=index, **self._labels_of(index, ()))

    def _expect(self, schedule: Schedule, update: int) -> None:
        """Prepare what the rows of an update lie in."""

    def held_out(self, size: int, *, limit: int | None = None, rank: int = 0, world: int = 1) -> Iterator[PairBatch]:
        """Yield held-out batches, always the same: the first `limit` usable rows, sampled as in epoch 0.

        Args:
            size: Most rows in a batch; with buckets a batch holds one image size.
            limit: Rows to use, in the table's order. None: all.
            rank: This process, which gets every `world`-th batch: two processes' counts differ by one at most.
            world: Number of processes.
        """
        first = np.sort(np.concatenate(self.groups))[:limit]
        chosen = [np.intersect1d(group, first) for group in self.groups]
        batches = [rows[i : i + size] for rows in chosen for i in range(0, len(rows), size)]
        return (self.batch(rows, 0) for rows in batches[rank::world])


def _bytes(batch: PairBatch) -> int:
    """What a batch takes, but for its labels."""
    sizes: dict[int, int] = {}  # both sides may share their texts

    def weigh(x: Tensor) -> Tensor:
        sizes[x.data_ptr()] = x.nbytes
        return x

    for each in (batch.latent, batch.trajectory):
        for x in () if each is None else (each.chosen, each.rejected):
            if x is not None:
                weigh(x)
    for cond in (batch.cond.chosen, batch.cond.rejected):
        if cond is not None:
            cond.map(weigh)
    return sum(sizes.values())


def group_rows(encodings: Encodings, left_out: Sequence[int] | np.ndarray = ()) -> tuple[np.ndarray, ...]:
    """Row numbers, without those that are broken or left out, by frames, height and width of their images."""
    usable = np.setdiff1d(np.arange(len(encodings.targets)), [*encodings.broken, *left_out])
    if not len(usable):
        return ()
    sizes, size_of = np.unique(encodings.targets[usable], axis=0, return_inverse=True)
    return tuple(usable[size_of.ravel() == k] for k in range(len(sizes)))


def as_condition(states: dict[str, Tensor]) -> Condition:
    """Make a prompt's text states a condition of one row, in float32; those that no field has are its `extra`."""
    rows = {name: (x.float() if x.is_floating_point() else x)[None] for name, x in states.items()}
    own = {name: rows.pop(name, None) for name in ("pooled", "mask")}
    return Condition(rows.pop("text"), **own, extra=rows)


def describe_broken(table: Table, broken: dict[int, str]) -> str:
    """Count the broken rows and name the first ones by their number in the table as it was found."""
    named = "; ".join(f"row {table.origin[i]}: {reason}" for i, reason in list(broken.items())[:NAMED])
    more = f"; and {len(broken) - NAMED} more (`diffpo data inspect` names them all)" if len(broken) > NAMED else ""
    return f"{len(broken)} of {len(table)} pairs of {table.path} are dropped, their images being broken: {named}{more}."
