"""Pair tables: where they come from, which rows can be used, and in which columns they travel.

Whatever a table's own layout, it leaves this file as a `Table`: a memory-mapped `datasets.Dataset` with TRL's columns
`prompt`, `chosen`, `rejected` and those of `OPTIONAL` that it offers. No image is decoded or copied on the way:
choosing and ordering rows is an index.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from diffpo.data.read import read_table
from diffpo.errors import ConfigError, UserError
from diffpo.types import Block

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
HOW_TO_GET = {
    "preference": "Run `diffpo data score PATH --scorer pickscore`",
    "chosen_score": "Run `diffpo data score PATH --scorer pickscore`",
    "rejected_score": "Run `diffpo data score PATH --scorer pickscore`",
    "chosen_prompt": "Run `diffpo data caption PATH`",
    "rejected_prompt": "Run `diffpo data caption PATH`",
}


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


@dataclass(frozen=True)
class Table:
    """One split in standard columns; row i is `rows[i]`, and i is the `index` of a batch."""

    rows: Dataset
    origin: np.ndarray
    """`[n]` the row numbers in the table as it was found."""
    fingerprint: str
    """Identity of the content: files, split, rows, order."""
    counts: Counts
    path: str

    def __len__(self) -> int:
        """Count the pairs."""
        return len(self.rows)

    def column(self, name: str) -> list[Any]:
        """Read one column, without touching the others."""
        return self.rows.select_columns([name])[:][name]

    def captions(self, side: str) -> list[str]:
        """Read the caption of every image of one side: `{side}_prompt` where the table has it, else `prompt`."""
        prompts = self.column("prompt")
        own = f"{side}_prompt"
        if own not in self.rows.column_names:
            return prompts
        return [prompt if text is None else text for text, prompt in zip(self.column(own), prompts, strict=True)]

    def take(self, index: np.ndarray) -> Table:
        """Keep some rows, in the order given."""
        fingerprint = _digest(self.fingerprint, np.ascontiguousarray(index, np.int64).tobytes())
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

    images: ClassVar[tuple[str, str]]
    """The layout's two image columns."""

    path: str
    """A Hub id, a folder written by `save_to_disk`, a parquet file, folder or glob, a JSONL, JSON or CSV table (image
    paths relative to it), a folder holding `metadata.{jsonl,csv,parquet}`, or `shapes:pairs`, the table that comes with
    diffpo."""
    split: str = "train"
    """Split to learn from."""
    validation_path: str | None = None
    """Another table to hold out, in the same layout. None: `path`, if `validation_split` is set."""
    validation_split: str | None = None
    """Split to hold out. None: `train` of `validation_path`, if that is set."""
    validation_fraction: float = 0.0
    """Hold out this share of the prompts, chosen by a hash of the prompt: always the same ones, all pairs of a prompt
    together."""
    ties: Literal["drop", "keep"] = "drop"
    """Pairs of which neither was preferred: `drop` them, or `keep` them with preference 0.5."""
    limit: int | None = None
    """Use only the first so many usable pairs of a table (before `validation_fraction` divides it)."""
    resolution: int = 512
    """Height and width in pixels; with `buckets` the square root of the area."""
    crop: Literal["center", "random"] = "center"
    """Where the crop lies after the shorter edge was resized. `random` depends on seed and row: the same window for
    both images."""
    flip: bool = False
    """Mirror both images of half of the pairs, chosen by seed and row."""
    buckets: bool = False
    """Keep aspects: nine shapes of about the same area, from 1:2 to 2:1. Both images get the one that suits the chosen
    image."""
    caption_dropout: float = 0.1
    """Probability that both captions of a pair become empty, drawn anew in each epoch. Keeps guidance working."""
    cache: bool = True
    """Encode everything once, to disk. False: encode each time, with the encoders in memory."""
    cache_dir: str | None = None
    """Where encodings are kept. None: $DIFFPO_CACHE, or ~/.cache/diffpo."""
    cache_dtype: Literal["float32", "float16"] = "float32"
    """Precision of the encodings, cached or not. float16 halves the disk space and rounds the latents' moments and the
    text states."""

    def __post_init__(self) -> None:
        """Check values against each other and against their ranges."""
        wrong = [
            (
                not 0 <= self.validation_fraction < 1,
                f"validation_fraction is {self.validation_fraction}; allowed is 0 <= x < 1.",
            ),
            (not 0 <= self.caption_dropout <= 1, f"caption_dropout is {self.caption_dropout}; allowed is 0 <= x <= 1."),
            (
                self.limit is not None and self.limit < 1,
                f"limit is {self.limit}; it must be positive, or null for all rows.",
            ),
            (self.resolution < 8, f"resolution is {self.resolution} pixels; it must be at least 8."),
            (
                bool(self.validation_fraction) and bool(self.validation_path or self.validation_split),
                "validation_fraction excludes validation_path and validation_split: choose one way to hold pairs out.",
            ),
        ]
        if any(bad for bad, _ in wrong):
            raise ConfigError(" ".join(message for bad, message in wrong if bad))

    @abstractmethod
    def adapt(self, raw: Dataset, path: str) -> Layout:
        """Bring a table into standard columns and choose its usable rows.

        Args:
            raw: The table as it was found.
            path: Where it was found, for messages.

        Raises:
            UserError: Columns are missing or hold what they must not.
        """


def load_table(source: Source, path: str, split: str) -> Table:
    """Read one table in standard columns.

    Raises:
        UserError: The table cannot be read, lacks columns, or has no usable row.
    """
    raw = read_table(path, split, source.images)
    layout = source.adapt(raw.rows, path)
    index = layout.index[: source.limit]
    if not len(index):
        raise UserError(
            f"None of the {layout.counts.rows} rows of {path} (split {split}) can be used: {layout.counts}."
        )
    keep = [name for name in (*REQUIRED, *OPTIONAL) if name in layout.rows.column_names]
    fingerprint = _digest(raw.fingerprint, type(source).__name__.encode())
    table = Table(
        layout.rows.select_columns(keep),
        np.arange(len(layout.rows)) % layout.counts.rows,
        fingerprint,
        layout.counts,
        path,
    )
    return table.take(index)


def load_splits(source: Source) -> Splits:
    """Read the pairs to learn from and those held out.

    Raises:
        UserError: A table cannot be read; or a prompt stands in both splits; or a split would be empty.
    """
    train = load_table(source, source.path, source.split)
    if source.validation_fraction:
        return _divide(train, source.validation_fraction)
    if not (source.validation_path or source.validation_split):
        return Splits(train, None)
    validation = load_table(source, source.validation_path or source.path, source.validation_split or "train")
    shared = shared_prompts(train, validation)
    if shared:
        raise UserError(
            f"{len(shared)} prompts of {validation.path} stand in the training split too, for example {_quote(shared)}. "
            "What is held out must be new to the model: remove those rows, or leave out validation_path and "
            "validation_split and set data.validation_fraction=0.05."
        )
    return Splits(train, validation)


def _divide(table: Table, fraction: float) -> Splits:
    held_out = np.array([_unit_hash(normalise(prompt)) < fraction for prompt in table.column("prompt")])
    if held_out.all() or not held_out.any():
        prompts = len({normalise(prompt) for prompt in table.column("prompt")})
        side = "training" if held_out.all() else "validation"
        raise UserError(
            f"validation_fraction={fraction} leaves no {side} pairs: {table.path} has {prompts} different prompts. "
            "Change the fraction."
        )
    return Splits(table.take(np.flatnonzero(~held_out)), table.take(np.flatnonzero(held_out)))


def normalise(prompt: str) -> str:
    """Reduce a prompt to what makes it the same prompt: NFKC, case folded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", prompt).casefold().split())


def shared_prompts(a: Table, b: Table) -> list[str]:
    """Prompts, normalised, that stand in both tables."""
    prompts = {normalise(prompt) for prompt in a.column("prompt")}
    return sorted(prompts & {normalise(prompt) for prompt in b.column("prompt")})


def check_requires(requires: frozenset[str], table: Table, method: str) -> None:
    """Check that a table offers the columns that a method needs.

    Raises:
        UserError: It does not; the message says how to get them.
    """
    missing = sorted(requires - set(table.rows.column_names))
    if not missing:
        return
    columns = " and ".join(f"`{name}`" for name in missing)
    advice = list(dict.fromkeys(HOW_TO_GET[name] for name in missing if name in HOW_TO_GET)) or [
        f"Add the column{'s'[: len(missing) > 1]}"
    ]
    raise UserError(
        f"{method} needs a {columns} column; this table has {', '.join(table.rows.column_names)}. "
        f"{'; '.join(advice)}, or choose method=dpo."
    )


def check_columns(rows: Dataset, required: tuple[str, ...], path: str, hint: str) -> None:
    """Check that a table as it was found has the columns of its layout.

    Raises:
        UserError: It does not; `hint` ends the message.
    """
    missing = [name for name in required if name not in rows.column_names]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}; it has {', '.join(rows.column_names)}. {hint}")


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


def _unit_hash(text: str) -> float:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def _digest(fingerprint: str, more: bytes) -> str:
    return hashlib.blake2b(more, key=fingerprint.encode(), digest_size=16).hexdigest()


def _quote(prompts: list[str]) -> str:
    return ", ".join(f"{prompt[:60]!r}" for prompt in prompts[:3])
