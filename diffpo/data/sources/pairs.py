"""Tables in TRL's columns: `prompt`, `chosen`, `rejected`, and what else `records.OPTIONAL` names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from diffpo.data.records import (
    Layout,
    Source,
    check_preference,
    check_scores,
    check_segments,
    has_text,
)

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
            preference = check_preference(raw, path)
            tie, judged = preference == 0.5, ~np.isnan(preference)
        for name in ("chosen_score", "rejected_score"):
            if name in raw.column_names:
                check_scores(raw, name, path)
        if "segments" in raw.column_names:
            judged &= check_segments(raw, path)
        use, counts = self.choose(judged, tie, prompted)
        return Layout(raw, np.flatnonzero(use), counts)
