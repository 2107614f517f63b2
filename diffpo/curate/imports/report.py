"""What became of the rows that `diffpo data import` read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from diffpo.data.records import Counts

NAMED = 20
"""Rows that a line names."""


@dataclass
class Report:
    """Counts of an import, or of one of its files."""

    rows: int = 0
    """Comparisons that were read."""
    pairs: int = 0
    """Written."""
    ties: int = 0
    """Dropped, or kept with preference 0.5."""
    unlabelled: int = 0
    """Dropped: nobody chose between the two."""
    promptless: int = 0
    """Dropped: no prompt."""
    graded: int = 0
    """Pairs written whose label lies between a tie and certainty."""
    broken: list[tuple[str, str]] = field(default_factory=list)
    """Rows dropped for an image that cannot be used, and why."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Values of columns that the table does not have, because its first rows lack them."""
    unpaired: list[str] = field(default_factory=list)
    """Images that have no other one to be compared with."""

    @property
    def counts(self) -> Counts:
        """The counts that every table has."""
        return Counts(self.rows, self.unlabelled, self.ties, self.promptless)

    def add(self, part: dict[str, Any]) -> None:
        """Add the counts of one file, as plain values."""
        for name, number in part["left_out"].items():
            self.left_out[name] = self.left_out.get(name, 0) + number
        self.rows += part["rows"]
        self.pairs += part["pairs"]
        self.ties += part["ties"]
        self.unlabelled += part["unlabelled"]
        self.promptless += part["promptless"]
        self.graded += part["graded"]
        self.broken += [(name, why) for name, why in part["broken"]]

    def lines(self) -> list[str]:
        """Say it in words; what there is none of is left out."""
        broken = [f"{name} ({why})" for name, why in self.broken]
        left_out = [f"{column} of {number} rows" for column, number in self.left_out.items()]
        return [
            str(self.counts),
            *_line(broken, "rows are dropped for a broken image"),
            *_line(self.unpaired, "images have no partner"),
            *([f"left out, as the first rows lack them: {', '.join(left_out)}"] if left_out else []),
        ]


def _line(names: Sequence[str], what: str) -> list[str]:
    return [name_some(f"{len(names)} {what}: ", names)] if names else []


def name_some(title: str, names: Sequence[str]) -> str:
    """Name the first ones after a title; nothing if there are none."""
    more = f"; and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return title + "; ".join(names[:NAMED]) + more if names else ""
