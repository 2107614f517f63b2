"""Pick-a-Pic (Kirstain et al., 2023): two images for a caption, and which of them a user preferred.

`label_0` is 1 when image 0 (`jpg_0`) was preferred, 0 when image 1 was, 0.5 for a tie; `label_1` is its complement.
Rows without a label (`has_label` false) were never judged. Pick-Double-Caption, which follows the same layout, adds a
caption per image (`caption_0/1`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from diffpo.data.checks import has_text, read_numbers
from diffpo.data.records import Layout, Source
from diffpo.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

SIDED = {"jpg": "{}", "caption": "{}_prompt", "seed": "{}_seed"}
"""Columns that come once per image: `jpg_0` becomes `chosen` or `rejected`, `caption_0` `chosen_prompt` or
`rejected_prompt`, ..."""
TIES = "preference, ties being 0.5"
"""Name of the column that is added when ties are kept, one that no table has."""


@dataclass(frozen=True, kw_only=True)
class PickAPic(Source):
    """A table with the columns of Pick-a-Pic: `caption`, `jpg_0`, `jpg_1`, `label_0`."""

    needed: ClassVar[tuple[str, ...]] = ("jpg_0", "jpg_1", "label_0", "caption")

    def adapt(self, raw: Dataset, path: str) -> Layout:
        """Choose the judged rows and put the preferred image first.

        The table is laid below itself with the two images' columns exchanged, as views of the same memory; an index
        then takes each row from the half in which its preferred image is `chosen`. So 300 GB of images are neither
        copied nor read.
        """
        from datasets import concatenate_datasets

        label = self._labels(raw, path)
        judged, tie, prompted = ~np.isnan(label), label == 0.5, has_text(raw, "caption", path)
        use, counts = self.choose(judged, tie, prompted)
        if self.ties == "keep":
            raw = raw.add_column(TIES, np.where(tie, 0.5, 1.0))
        both = concatenate_datasets([_rename(raw, ("chosen", "rejected")), _rename(raw, ("rejected", "chosen"))])
        index = np.where(label == 0, np.arange(len(raw)) + len(raw), np.arange(len(raw)))
        return Layout(both, index[use], counts)

    def _labels(self, raw: Dataset, path: str) -> np.ndarray:
        """`[n]` label of image 0; NaN where nobody judged."""
        label = read_numbers(raw, "label_0", path).copy()
        if "has_label" in raw.column_names:
            label[np.nan_to_num(read_numbers(raw, "has_label", path)) == 0] = np.nan
        wrong = np.flatnonzero(~np.isnan(label) & ~np.isin(label, (0, 0.5, 1)))
        if len(wrong):
            raise UserError(
                f"{path}: label_0 is {label[wrong[0]]:g} in row {wrong[0]}, and {len(wrong)} rows are like it; allowed "
                "are 1 (image 0 was preferred), 0 (image 1 was) and 0.5 (a tie). Soft labels go into the `preference` "
                "column of data.name=pairs."
            )
        return label


def _rename(raw: Dataset, sides: tuple[str, str]) -> Dataset:
    """Give the standard names, with `sides` for image 0 and image 1, and leave the other columns out."""
    names = {"caption": "prompt", "user_id": "user_id", TIES: "preference"}
    for column, name in SIDED.items():
        names |= {f"{column}_{i}": name.format(side) for i, side in enumerate(sides)}
    names = {old: new for old, new in names.items() if old in raw.column_names}
    kept = raw.select_columns(list(names)).rename_columns(names)
    return kept.select_columns(sorted(kept.column_names))
