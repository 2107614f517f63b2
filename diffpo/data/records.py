"""Pair tables: where they come from, which rows can be used, and in which columns they travel.

Whatever a table's own layout, it leaves this file as a `Table`: a memory-mapped `datasets.Dataset` with TRL's columns
`prompt`, `chosen`, `rejected` and those of `OPTIONAL` that it offers. No image is decoded or copied on the way:
choosing and ordering rows is an index.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from diffpo.core.block import Block, Count, Fraction, Pixels, Place, Sharing
from diffpo.errors import ConfigError, UserError

if TYPE_CHECKING:
    from datasets import Dataset

REQUIRED = ("prompt", "chosen", "rejected")
OPTIONAL = (
    "chosen_prompt",
    "rejected_prompt",
    "preference",
    "chosen_score",
    "rejected_score",
    "user_id",
    "segments",
    "chosen_seed",
    "rejected_seed",
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
        """Say it in words."""
        return (
            f"{self.rows} rows, of which {self.ties} are ties, {self.unlabelled} have no label and "
            f"{self.promptless} have no prompt"
        )


@dataclass(frozen=True)
class Table:
    """One split in standard columns; row i is `rows[i]`, and i is the `index` of a batch."""

    rows: Dataset
    origin: np.ndarray
    """`[n]` the row numbers in the table as it was found."""
    fingerprint: str
    """Identity of the content: files, split, rows, order."""
    counts: Counts
    path: Place

    def __len__(self) -> int:
        """Count the pairs."""
        return len(self.rows)

    def column(self, name: str) -> list[Any]:
        """Read one column, without touching the others."""
        return read_column(self.rows, name)

    def captions(self, side: str) -> list[str]:
        """Read the caption of every image of one side: `{side}_prompt` where it has one, else `prompt`."""
        prompts = self.column("prompt")
        own = f"{side}_prompt"
        if own not in self.rows.column_names:
            return prompts
        return [text if has_words(text) else prompt for text, prompt in zip(self.column(own), prompts, strict=True)]

    def captions_missing(self, side: str) -> int:
        """Count the rows in which `{side}_prompt`, a column of this table, is null or blank: `prompt` stands in."""
        return sum(not has_words(text) for text in self.column(f"{side}_prompt"))

    def take(self, index: np.ndarray) -> Table:
        """Keep some rows, in the order given."""
        fingerprint = digest(self.fingerprint, np.ascontiguousarray(index, np.int64).tobytes())
        return Table(self.rows.select(index), self.origin[index], fingerprint, self.counts, self.path)


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

    columns: ClassVar[tuple[str, ...]]
    """The columns that a table of this layout must have; the first two hold the images."""

    path: Place
    """A Hub id, a folder written by `save_to_disk`, a parquet file, folder or glob, a JSONL, JSON or CSV table (image
    paths relative to it), a folder holding `metadata.{jsonl,csv,parquet}`, or `shapes:pairs`, the table that comes with
    diffpo."""
    split: Place = "train"
    """Split to learn from."""
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
    caption_dropout: Fraction = 0.1
    """Probability that both captions of a pair become empty, drawn anew in each epoch. Keeps guidance working."""
    cache: bool = True
    """Encode everything once, to disk. False: encode each time, with the encoders in memory."""
    cache_dir: Place | None = None
    """Where encodings are kept. None: $DIFFPO_CACHE, or ~/.cache/diffpo."""
    cache_dtype: Literal["float32", "float16"] = "float32"
    """Precision of the encodings, cached or not. float16 halves the disk space and rounds the latents' moments and the
    text states."""

    def __post_init__(self) -> None:
        """Check the ranges, and that one way to hold pairs out is chosen.

        Raises:
            ConfigError: A value is out of range, or two ways are chosen.
        """
        super().__post_init__()
        if self.validation_fraction and (self.validation_path or self.validation_split):
            raise ConfigError(
                "validation_fraction excludes validation_path and validation_split: choose one way to hold pairs out."
            )

    @abstractmethod
    def adapt(self, raw: Dataset, path: str) -> Layout:
        """Bring a table into standard columns and choose its usable rows.

        Args:
            raw: The table as it was found, having `columns`.
            path: Where it was found, for messages.

        Raises:
            UserError: A column holds what it must not.
        """


def read_column(rows: Dataset, name: str) -> list[Any]:
    """Read one column, without touching the others."""
    return rows.select_columns([name])[:][name]


def has_words(caption: str | None) -> bool:
    """Whether an image has a caption of its own: a blank one is none (CSV files cannot say null)."""
    return caption is not None and bool(caption.strip())


def has_text(rows: Dataset, name: str) -> np.ndarray:
    """`[n]` whether a row has a prompt; an empty one counts."""
    return np.array([isinstance(text, str) for text in read_column(rows, name)], bool)


def check_preference(values: list[Any], path: str) -> np.ndarray:
    """Return `[n]` float64 preferences.

    Raises:
        UserError: One is missing, is no number, or lies outside [0, 1].
    """
    wrong = [i for i, p in enumerate(values) if not isinstance(p, int | float) or math.isnan(p) or not 0 <= p <= 1]
    if wrong:
        examples = ", ".join(f"{values[i]!r} in row {i}" for i in wrong[:3])
        raise UserError(
            f"{path}: `preference` is P(chosen > rejected), a number from 0 to 1; {len(wrong)} rows are not "
            f"({examples})."
        )
    return np.array(values, np.float64)


def check_scores(values: list[Any], name: str, path: str) -> None:
    """Check a column of scores.

    Raises:
        UserError: One is missing or is no finite number.
    """
    wrong = [i for i, score in enumerate(values) if not isinstance(score, int | float) or not math.isfinite(score)]
    if wrong:
        examples = ", ".join(f"{values[i]!r} in row {i}" for i in wrong[:3])
        raise UserError(
            f"{path}: `{name}` is a number, what a scorer gave the image; {len(wrong)} rows have none ({examples}). "
            "Score the table again, or remove the column."
        )


def check_captions(values: list[Any], name: str, path: str) -> None:
    """Check the captions of one side.

    Raises:
        UserError: One is neither a text nor null.
    """
    wrong = [i for i, text in enumerate(values) if not isinstance(text, str | None)]
    if wrong:
        examples = ", ".join(f"{values[i]!r} in row {i}" for i in wrong[:3])
        raise UserError(f"{path}: `{name}` holds captions, texts or null; {len(wrong)} rows do not ({examples}).")


def check_segments(values: list[Any], path: str) -> None:
    """Check the frame-by-frame labels.

    Raises:
        UserError: One is no list of -1 (the rejected side is better), 0 (neither) and 1 (the chosen side is).
    """
    wrong = [i for i, marks in enumerate(values) if not isinstance(marks, list) or not set(marks) <= {-1, 0, 1}]
    if wrong:
        examples = ", ".join(f"{values[i]!r} in row {i}" for i in wrong[:3])
        raise UserError(
            f"{path}: `segments` is a list of -1, 0 and 1, one per frame; {len(wrong)} rows are not ({examples})."
        )


def digest(fingerprint: str, more: bytes) -> str:
    """Derive a fingerprint from another one."""
    return hashlib.blake2b(more, key=fingerprint.encode(), digest_size=16).hexdigest()
