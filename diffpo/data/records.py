"""Pair tables: where they come from, which rows can be used, and in which columns they travel.

Whatever a table's own layout, it leaves this file as a `Table`: a memory-mapped `datasets.Dataset` with TRL's columns
`prompt`, `chosen`, `rejected` and those of `OPTIONAL` that it offers. No image is decoded or copied on the way:
choosing and ordering rows is an index.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow
from pyarrow import compute

from diffpo.core.block import Block, Count, Fraction, FramesPerSecond, Pixels, Place, Positive, Range, Sharing, Whole
from diffpo.core.segments import SegmentRule
from diffpo.data.checks import has_words
from diffpo.errors import ConfigError

if TYPE_CHECKING:
    from datasets import Dataset

PART_ROWS = 1024
"""Rows that are Python objects at a time."""
HASHED_ROWS = 4096
"""Rows that are hashed together where a table is identified: another number gives other identities."""
REQUIRED = ("prompt", "chosen", "rejected")
OPTIONAL = (
    "chosen_prompt",
    "rejected_prompt",
    "preference",
    "chosen_score",
    "rejected_score",
    "user_id",
    "segments",
    "weight",
    "chosen_seed",
    "rejected_seed",
    "emb",
)


@dataclass(frozen=True)
class Counts:
    """What became of a table's rows."""

    rows: int
    """In the table as it was found."""
    unlabelled: int = 0
    """Dropped: nobody chose between the two."""
    ties: int = 0
    """Dropped, or kept with preference 0.5 (`ties`)."""
    promptless: int = 0
    """Dropped: no prompt."""

    def __str__(self) -> str:
        return (
            f"{self.rows} rows, of which {self.ties} are ties, {self.unlabelled} have no label and "
            f"{self.promptless} have no prompt"
        )


@dataclass(frozen=True)
class Table:
    """One split in standard columns; row i is `rows[i]`, and i is the `index` of a batch."""

    rows: Dataset
    places: np.ndarray
    """`[n]` numbers that tell the rows apart, the same ones as long as the files of the table are."""
    fingerprint: str
    """Identity of the files that hold the table, and of the split."""
    counts: Counts
    path: Place

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def origin(self) -> np.ndarray:
        """`[n]` the row numbers in the table as it was found."""
        return self.places % self.counts.rows

    def arrow(self, name: str, rows: slice | Sequence[int] = slice(None)) -> pyarrow.ChunkedArray:
        """Read one column, or some rows of it, as it lies in memory or on disk."""
        return self._views[name][rows][name]

    def column(self, name: str) -> list[Any]:
        """Read one column, without touching the others."""
        return self.arrow(name).to_pylist()

    def cell(self, row: int, name: str) -> Any:
        """Read one value."""
        return self.arrow(name, slice(row, row + 1))[0].as_py()

    def sides(self, row: int) -> tuple[str, str]:
        """Name the side of a row that was preferred, and the other: below 0.5, `preference` is against the order."""
        label = self.cell(row, "preference") if "preference" in self.rows.column_names else 1.0
        return ("rejected", "chosen") if label < 0.5 else ("chosen", "rejected")

    @cached_property
    def _views(self) -> dict[str, Dataset]:
        """Each column as a table of its own: making one takes longer than reading from it."""
        return {name: self.rows.select_columns([name]).with_format("arrow") for name in self.rows.column_names}

    def captions(self, side: str, rows: slice | Sequence[int] = slice(None)) -> pyarrow.ChunkedArray:
        """Read captions of images of one side: `{side}_prompt` where it has one, else `prompt`."""
        own, prompts = f"{side}_prompt", self.arrow("prompt", rows)
        if own not in self.rows.column_names:
            return prompts
        texts = self.arrow(own, rows).cast(prompts.type)
        return compute.if_else(has_words(texts), texts, prompts)

    def in_parts(
        self, read: Callable[[str, slice], pyarrow.ChunkedArray], what: str, size: int = PART_ROWS
    ) -> Iterator[list[Any]]:
        """Read all rows of a column (`arrow`) or of a side (`captions`), few of which are Python objects at a time."""
        for start in range(0, len(self), size):
            yield read(what, slice(start, start + size)).to_pylist()

    def captions_missing(self, side: str) -> int:
        """Count the rows in which `{side}_prompt`, a column of this table, is null or blank: `prompt` stands in."""
        return len(self) - (compute.sum(has_words(self.arrow(f"{side}_prompt"))).as_py() or 0)

    def take(self, index: np.ndarray) -> Table:
        """Keep some rows, in the order given."""
        return Table(self.rows.select(index), self.places[index], self.fingerprint, self.counts, self.path)


@dataclass(frozen=True)
class Splits:
    """The pairs to learn from and those held out."""

    train: Table
    validation: Table | None


@dataclass(frozen=True)
class Layout:
    """What a source makes of a table: standard columns over all rows, and which rows to use in which order."""

    rows: Dataset
    index: np.ndarray
    """`[n]` rows of `rows`; its row i stands for row `i % counts.rows` of the table as it was found."""
    counts: Counts


@dataclass(frozen=True, kw_only=True)
class Source(Block, ABC):
    """Where pairs come from and how their images are prepared; a layout of columns is a subclass."""

    needed: ClassVar[tuple[str, ...]]
    """The columns that a table of this layout must have; the first two hold the images."""

    path: Place
    """A Hub id, a folder written by `save_to_disk`, a parquet file, folder or glob, a JSONL, JSON or CSV table (image
    paths relative to it), a folder holding `metadata.{jsonl,csv,parquet}`, or `shapes:pairs`, the table that comes with
    diffpo."""
    columns: dict[str, str] = field(default_factory=dict)
    """What the table calls the columns, where it has names of its own: `{prompt: caption, chosen: winner}`."""
    split: Place = "train"
    """Split to learn from. A table without splits needs none."""
    validation_path: Place | None = None
    """Another table to hold out, in the same layout. None: `path`, if `validation_split` is set."""
    validation_split: Place | None = None
    """Split to hold out. None: `train` of `validation_path`, if that is set."""
    validation_fraction: Sharing = 0.0
    """Hold out this share of the prompts, chosen by a hash of the prompt: always the same ones, all pairs of a prompt
    together."""
    ties: Literal["drop", "keep"] = "drop"
    """Pairs of which neither was preferred: `drop` them, or `keep` them with preference 0.5."""
    limit: Count | None = None
    """Use only the first so many usable pairs of a table (before `validation_fraction` divides it)."""
    resolution: Pixels = 512
    """Height and width in pixels; with `buckets` the square root of the area."""
    crop: Literal["center", "random"] = "center"
    """Where the crop lies after the shorter edge was resized. `random` depends on seed and row: the same window for
    both images."""
    flip: bool = False
    """Mirror both images of half of the pairs, chosen by seed and row."""
    buckets: bool = False
    """Keep aspects: nine shapes of about the same area, from 1:2 to 2:1. Both images get the one that suits the chosen
    image."""
    segment_seconds: Positive = 1.0
    """Length of a segment that the column `segments` has a label for. The last one may be shorter."""
    segment_rule: SegmentRule = "majority"
    """Label of a latent frame that holds frames of two segments: that of more than half of them, else a tie
    (`majority`); always a tie (`unanimous`); that of its last frame (`last`)."""
    frames: Annotated[int, Range(least=1, most=10_000)] | None = None
    """Frames of every clip, from its first on; pairs with a shorter one are dropped. 1 takes the first frame of clips.
    None: each clip at its own length, less the last frames that make no length that the model takes."""
    fps: FramesPerSecond | None = None
    """Frames per second that clips are resampled to, so that variable rates become even. None: what the model was made
    for."""
    unequal: Literal["refuse", "drop", "trim"] = "refuse"
    """Pairs whose two clips have different numbers of frames: `refuse` stops and names them, `drop` leaves them out,
    `trim` cuts the longer one at its end."""
    caption_dropout: Fraction = 0.1
    """Probability that both captions of a pair become empty, drawn anew in each epoch. Keeps guidance working."""
    reference_draws: Count | None = None
    """Learn from so many draws of time, noise, latent's sample and dropped caption per pair, in turn: epoch e uses draw
    e modulo this number. The reference's errors on them are kept on disk, and training holds no reference. None: fresh
    draws in every epoch, and a reference that is asked about each."""
    users: Place | None = None
    """A folder of `diffpo data users`: states of the users in the column `user_id`, for a model that is told them
    (`model=user`). Rows of unseen users, and the pairs that the states were made of, are left out."""
    user_dropout: Fraction = 0.1
    """Probability that a pair is learned without its user, drawn anew in each epoch."""
    cache: bool = True
    """Encode everything once, to disk. False: encode each time, with the encoders in memory."""
    cache_dir: Place | None = None
    """Where encodings are kept. None: $DIFFPO_CACHE, or ~/.cache/diffpo."""
    cache_dtype: Literal["float32", "float16"] = "float32"
    """Precision of the encodings, cached or not. float16 halves the disk space and rounds the latents' moments and the
    text states."""
    encoded: Place | None = None
    """A folder, or an address of an object store such as `s3://bucket/pairs`, where `diffpo data encode` put the
    encodings of this very table with these settings: training reads them from there, a few shards at a time. None: the
    cache."""
    encoded_window: Count = 8
    """Shards of `encoded` whose pairs are shuffled together; the shards themselves are shuffled in each epoch."""
    encode_batch: Count | None = None
    """Images, or prompts, that the cache's encoders take together; fewer where a GPU's memory does not hold so many. 1:
    one by one, so that an encoding is the same to the bit whatever else is encoded. More agrees with that to 1e-4 in
    float32, and is kept apart. None: 1 on a CPU, 16 on a GPU."""
    workers: Whole | None = None
    """Processes that decode and resize while the cache is filled; 0: threads of this process. None: one per core, 16 at
    most, where hundreds of images are encoded together; else threads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validation_fraction and (self.validation_path or self.validation_split):
            raise ConfigError(
                "validation_fraction excludes validation_path and validation_split: choose one way to hold pairs out."
            )

    def draw(self, epoch: int) -> int:
        """Return the epoch in whose place an epoch draws its random numbers: itself, or an earlier one."""
        return epoch if self.reference_draws is None else epoch % self.reference_draws

    def choose(self, judged: np.ndarray, tie: np.ndarray, prompted: np.ndarray) -> tuple[np.ndarray, Counts]:
        """`[n]` the rows to use, by whether they are judged, are ties and have a prompt; and what became of all."""
        use = judged & prompted & (~tie if self.ties == "drop" else True)
        dropped = ~judged, judged & tie, judged & ~prompted
        return use, Counts(len(use), *(int(rows.sum()) for rows in dropped))

    @abstractmethod
    def adapt(self, raw: Dataset, path: str) -> Layout:
        """Bring a table that has the columns `needed` into standard ones, and choose its usable rows.

        A column that holds what it must not is refused, with `path` in the message.
        """
