"""Tables in TRL's columns: `prompt`, `chosen`, `rejected`, and what else `records.OPTIONAL` names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from diffpo.data.records import REQUIRED, Counts, Layout, Source, check_columns, check_preference

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, kw_only=True)
class Pairs(Source):
    """A table whose columns are already ours; a row with `preference` 0.5 is a tie."""

    images: ClassVar[tuple[str, str]] = ("chosen", "rejected")

    def adapt(self, raw: Dataset, path: str) -> Layout:
        """Choose the rows that have a prompt and, unless ties are kept, a preference other than 0.5."""
        looks_like_pickapic = {"jpg_0", "jpg_1"} <= set(raw.column_names)
        hint = (
            "Choose data.name=pickapic."
            if looks_like_pickapic
            else f"Rename its columns: data.name=pairs needs {', '.join(REQUIRED)}."
        )
        check_columns(raw, REQUIRED, path, hint)
        prompted = has_text(raw, "prompt")
        tie = np.zeros(len(raw), bool)
        if "preference" in raw.column_names:
            tie = check_preference(raw.select_columns(["preference"])[:]["preference"], path) == 0.5
        use = prompted if self.ties == "keep" else prompted & ~tie
        return Layout(
            raw, np.flatnonzero(use), Counts(len(raw), ties=int(tie.sum()), promptless=int((~prompted).sum()))
        )


def has_text(raw: Dataset, name: str) -> np.ndarray:
    """`[n]` whether a row has a prompt; an empty one counts."""
    return np.array([isinstance(text, str) for text in raw.select_columns([name])[:][name]], bool)
