"""HPDv3 (Ma et al., 2025) and HPDv3++: `path1` is the image that people preferred to `path2`, for `prompt`.

`choice_dist`, where a row has it, counts the votes for either image, and `confidence` says how sure the verdict is. As
`path1` is the preferred one by definition, its share of the votes is that of the majority. The paths are relative to
the JSON file: extract the images beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from diffpo.core.block import Fraction
from diffpo.data.checks import arrow_column, has_text, read_numbers
from diffpo.data.records import Layout, Source
from diffpo.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, kw_only=True)
class HPDv3(Source):
    """A table with the columns of HPDv3: `prompt`, `path1` (preferred), `path2`."""

    needed: ClassVar[tuple[str, ...]] = ("path1", "path2", "prompt")

    labels: Literal["hard", "soft"] = "hard"
    """`soft`: the majority's share of the votes becomes `preference` (1 where nobody was counted). `hard`: it does not;
    equal votes are a tie either way."""
    min_confidence: Fraction = 0.0
    """Rows with a smaller `confidence` count as unlabelled; the authors train HPSv3 with 0.95."""

    def adapt(self, raw: Dataset, path: str) -> Layout:
        """Choose the rows whose verdict is sure enough, and give them the standard names."""
        share = self._shares(raw, path)
        sure = np.ones(len(raw), bool)
        if "confidence" in raw.column_names:
            confidence = read_numbers(raw, "confidence", path)
            sure = np.isnan(confidence) | (confidence >= self.min_confidence)
        tie, prompted = share == 0.5, has_text(raw, "prompt", path)
        use, counts = self.choose(sure, tie, prompted)
        rows = raw.select_columns(["prompt", "path1", "path2"]).rename_columns({"path1": "chosen", "path2": "rejected"})
        if self.labels == "soft" or self.ties == "keep":
            rows = rows.add_column("preference", share if self.labels == "soft" else np.where(tie, 0.5, 1.0))
        return Layout(rows, np.flatnonzero(use), counts)

    def _shares(self, raw: Dataset, path: str) -> np.ndarray:
        """`[n]` the majority's share of the votes; 1 where none are known."""
        if "choice_dist" not in raw.column_names:
            return np.ones(len(raw))
        votes = arrow_column(raw, "choice_dist").to_pylist()
        wrong = [i for i, counted in enumerate(votes) if counted and not _are_votes(counted)]
        if wrong:
            raise UserError(
                f"{path}: choice_dist is {votes[wrong[0]]} in row {wrong[0]}, and {len(wrong)} rows are like it; "
                "allowed are the numbers of votes for the two images, and null."
            )
        return np.array([max(counted) / sum(counted) if counted else 1.0 for counted in votes])


def _are_votes(counted: list[Any]) -> bool:
    return (
        len(counted) == 2 and all(v is not None and math.isfinite(v) and v >= 0 for v in counted) and sum(counted) > 0
    )
