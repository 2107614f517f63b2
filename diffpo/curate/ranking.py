"""Which images of a prompt make a pair, and which of the two is the better one. Nothing here reads a file.

best-worst   the image with the highest score against the one with the lowest: one pair per prompt
all          every two images of a prompt

Two images whose scores are equal, or differ by less than the margin, are a tie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from diffpo.core.block import Block, NotNegative
from diffpo.media.folder import Media


@dataclass(frozen=True)
class Candidate:
    """An image that may become a side of a pair."""

    folder: Path
    media: Media
    score: float | None = None
    """What ranks it; None: people do."""


@dataclass(frozen=True)
class Judged:
    """Two images of the same prompt, the better one first."""

    chosen: Candidate
    rejected: Candidate
    tie: bool
    """Neither is better; then they stand in the order of the candidates, or of the table of choices."""
    user_id: str | None = None
    """Who chose."""


@dataclass(frozen=True, kw_only=True)
class Ranking(Block):
    """How scores become pairs."""

    strategy: Literal["best-worst", "all"] = "best-worst"
    """One pair per prompt, or every two images of it."""
    margin: NotNegative = 0.0
    """Scores that differ by less are a tie."""

    def rank(self, candidates: Iterable[Candidate]) -> list[Judged]:
        """Make pairs of scored candidates, prompt by prompt in the order in which the prompts first come."""
        meet = STRATEGIES[self.strategy]
        return [self._judge(*two) for group in by_prompt(candidates).values() for two in meet(group)]

    def _judge(self, first: Candidate, second: Candidate) -> Judged:
        difference = first.score - second.score
        tie = difference == 0 or abs(difference) < self.margin
        return Judged(second, first, tie) if difference < 0 and not tie else Judged(first, second, tie)


def by_prompt(candidates: Iterable[Candidate]) -> dict[str, list[Candidate]]:
    """Group candidates by the text of their prompt, whatever folder they are in."""
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.media.prompt, []).append(candidate)
    return groups


def best_against_worst(candidates: Sequence[Candidate]) -> list[tuple[Candidate, Candidate]]:
    """Of equally good ones the first is the best, of equally bad ones the last is the worst."""
    if len(candidates) < 2:
        return []
    return [(max(candidates, key=_score), min(reversed(candidates), key=_score))]


def all_against_all(candidates: Sequence[Candidate]) -> list[tuple[Candidate, Candidate]]:
    """Every two, in the order of the candidates."""
    return list(combinations(candidates, 2))


def _score(candidate: Candidate) -> float:
    return candidate.score


STRATEGIES: dict[str, Callable[[Sequence[Candidate]], list[tuple[Candidate, Candidate]]]] = {
    "best-worst": best_against_worst,
    "all": all_against_all,
}
