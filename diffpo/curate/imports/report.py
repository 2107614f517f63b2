"""What became of the rows that `diffpo data import` read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffpo.data.records import Counts

NAMED = 20
"""A line names so many rows."""


@dataclass
class ImportReport:
    """Counts of an import, or of one of its files."""

    rows: int = 0
    """Pairs that were read."""
    pairs: int = 0
    """Pairs that were written."""
    ties: int = 0
    """Pairs that were dropped, or kept with preference 0.5."""
    unlabelled: int = 0
    """Pairs that were dropped because nobody chose between the two."""
    promptless: int = 0
    """Pairs that were dropped because they have no prompt."""
    graded: int = 0
    """Pairs that were written whose label lies between a tie and certainty."""
    broken: list[tuple[str, str]] = field(default_factory=list)
    """Rows that were dropped for an image that cannot be used, and why."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Values of columns that the table does not have, because its first rows lack them."""
    unpaired: Sequence[str] = field(default_factory=list)
    """Images that have no other one to be compared with."""

    @property
    def counts(self) -> Counts:
        """The counts that every table has."""
        return Counts(self.rows, self.unlabelled, self.ties, self.promptless)

    def add(self, part: Mapping[str, Any]) -> None:
        """Add counts, by the names of the fields, as plain values."""
        for name, found in part.items():
            if isinstance(found, dict):
                for column, number in found.items():
                    self.left_out[column] = self.left_out.get(column, 0) + number
            else:
                setattr(self, name, getattr(self, name) + found)

    def lines(self) -> list[str]:
        """Say it in words; what there is none of is left out."""
        broken = [f"{name} ({why})" for name, why in self.broken]
        left_out = ", ".join(f"{column} of {number} rows" for column, number in self.left_out.items())
        said = [
            name_some(f"{len(broken)} rows are dropped for a broken image: ", broken),
            name_some(f"{len(self.unpaired)} images have no partner: ", self.unpaired),
            f"left out, as the first rows lack them: {left_out}" if left_out else "",
        ]
        return [str(self.counts), *filter(None, said)]


def name_some(title: str, names: Sequence[str]) -> str:
    """Name the first ones after a title; nothing if there are none."""
    more = f"; and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return title + "; ".join(names[:NAMED]) + more if names else ""
