"""Tables in TRL's columns: `prompt`, `chosen`, `rejected`, and what else `records.OPTIONAL` names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from diffpo.data.checks import arrow_column, as_numbers, has_text, read_numbers, refuse
from diffpo.data.records import Layout, Source

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, kw_only=True)
class Pairs(Source):
    """A table whose columns are already ours; a row with `preference` 0.5 is a tie."""

    needed: ClassVar[tuple[str, ...]] = ("chosen", "rejected", "prompt")

    def adapt(self, raw: Dataset, path: str) -> Layout:
        """Choose the rows that have a prompt, labels where there are any, and unless ties are kept, no tie."""
        prompted = has_text(raw, "prompt", path)
        tie, judged = np.zeros(len(raw), bool), np.ones(len(raw), bool)
        if "preference" in raw.column_names:
            preference = _preferences(raw, path)
            tie, judged = preference == 0.5, ~np.isnan(preference)
        for name in ("chosen_score", "rejected_score"):
            if name in raw.column_names:
                scores, advice = arrow_column(raw, name), "Score the table again, or remove the column."
                what = f"{path}: `{name}` is a number, what a scorer gave the image"
                refuse(~np.isfinite(as_numbers(scores)), scores, what, advice)
        if "segments" in raw.column_names:
            judged &= _has_segments(raw, path)
        if "weight" in raw.column_names:
            weights, advice = (
                arrow_column(raw, "weight"),
                "Give each row one (1: as it is), or remove the column.",
            )
            numbers = as_numbers(weights)
            what = f"{path}: `weight` is what a pair's loss is multiplied with, a number of at least 0"
            refuse(~(np.isfinite(numbers) & (numbers >= 0)), weights, what, advice)
        use, counts = self.choose(judged, tie, prompted)
        return Layout(raw, np.flatnonzero(use), counts)


def _preferences(raw: Dataset, path: str) -> np.ndarray:
    """`[n]` P(chosen > rejected); NaN where it is missing."""
    numbers = read_numbers(raw, "preference", path)
    allowed = np.isnan(numbers) | ((numbers >= 0) & (numbers <= 1))
    what = f"{path}: `preference` is P(chosen > rejected), a number from 0 to 1"
    refuse(~allowed, arrow_column(raw, "preference"), what)
    return numbers


def _has_segments(raw: Dataset, path: str) -> np.ndarray:
    """`[n]` whether a row has labels of segments: -1 (the rejected side is better), 0 (neither), 1 (the chosen one).

    How many there must be depends on the clips, which are not decoded here: see `segments.SegmentLabels`.
    """
    cells = arrow_column(raw, "segments")
    rows = cells.to_pylist()
    right = [row is None or (isinstance(row, list) and all(map(_is_mark, row))) for row in rows]
    refuse(~np.array(right, bool), cells, f"{path}: `segments` is a list of -1, 0 and 1, one per segment")
    return np.array([bool(row) for row in rows], bool)


def _is_mark(value: object) -> bool:
    """Whether a label is one; a boolean is none: nobody knows whether false is a tie."""
    return not isinstance(value, bool) and value in (-1, 0, 1)
