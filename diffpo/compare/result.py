"""What was found of two models, or of many: values, and what they come to in a sentence.

Tournament     all models; the first is the baseline
Comparison   one model against the baseline
ScorerResult   by one scorer; per category a `Stratum`
Ranking      all models on one scale, by one scorer; per pair of models a `Cell`
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from diffpo.compare.numbers import percent, span
from diffpo.compare.p_values import least_p_value
from diffpo.compare.pairing import WHAT, Mode
from diffpo.compare.ranking import Rank
from diffpo.compare.stats import Estimate, WinRate
from diffpo.compare.users import UserWinRate
from diffpo.compare.votes import HUMAN


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """One category of prompts."""

    category: str
    win_rate: WinRate
    difference: Estimate
    adjusted_p: float
    """Of the win rate, by Benjamini and Hochberg over the categories: they are explored, not claimed."""


@dataclass(frozen=True, kw_only=True)
class ScorerResult:
    """What one scorer says."""

    scorer: str
    model_mean: float
    """Mean over prompts of the mean over seeds."""
    baseline_mean: float
    difference: Estimate
    win_rate: WinRate
    provenance: dict[str, Any] = field(default_factory=dict)
    adjusted_p: float = math.nan
    """The win rate's p-value by Holm over all scorers and baselines of the claim."""
    in_loop: str = ""
    """Why a gain on this scorer is no independent evidence; empty as far as is known."""
    strata: tuple[Stratum, ...] = ()
    """By category of prompts."""
    users: UserWinRate | None = None
    """Over users, where it is known who chose."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model against a baseline; the first scorer is the one that the headline speaks of."""

    model: str
    baseline: str
    n_prompts: int
    n_pairs: int
    level: float
    results: tuple[ScorerResult, ...]
    notes: tuple[str, ...] = ()
    """What a reader must know to judge the numbers."""
    mode: Mode = "same-seed"
    """Which images were compared; see `pairing`."""
    prompt_set: str = ""
    """Name and hash of the prompts, as far as the media folders know them."""
    seeds_known: bool = True
    """Otherwise images of a prompt were paired in their order, not by the same noise."""

    @property
    def what(self) -> str:
        """What was compared and counted."""
        in_order = self.mode == "same-seed" and not self.seeds_known
        return "comparisons on the same prompts, of images in their order" if in_order else WHAT[self.mode]

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `unclear`: whether the first scorer's interval of the win rate excludes one half.

        Always unclear where prompts are so few that no test could tell.
        """
        first = self.results[0].win_rate
        return "unclear" if least_p_value(first.n_prompts) > 1 - self.level else first.standing

    @property
    def headline(self) -> str:
        """Who wins, by how much, how sure: one or two sentences."""
        first = self.results[0]
        opening = {
            "better": f"{self.model} beats {self.baseline}.",
            "worse": f"{self.model} loses to {self.baseline}.",
            "unclear": f"No clear difference between {self.model} and {self.baseline}.",
        }[self.verdict]
        rate = first.win_rate
        sure = "" if math.isnan(rate.ci_low) else f" ({self.level:.0%} interval {span(rate, percent)})"
        judge, what = ("people", "votes") if first.scorer == HUMAN else (first.scorer, self.what)
        return (
            f"{opening} Judged by {judge}, {self.model} wins {percent(rate.estimate)} of {self.n_pairs} {what}{sure}."
            f"{' Ties count half.' if rate.ties else ''}{f' But {first.in_loop}' if first.in_loop else ''}"
        )


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One pair of models, by one scorer."""

    model: str
    other: str
    win_rate: WinRate
    """Of `model` over `other`."""
    adjusted_p: float
    """By Benjamini and Hochberg over all pairs of this scorer: they are explored, not claimed."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """What one scorer makes of all models."""

    scorer: str
    ranks: tuple[Rank, ...]
    """Strongest first."""
    cells: tuple[Cell, ...]
    """Every pair that was compared, in one order."""
    in_loop: str = ""

    def cell(self, model: str, other: str) -> Cell | None:
        """The cell of `model` over `other`, in this order; None if the two were not compared."""
        for cell in self.cells:
            if (cell.model, cell.other) == (model, other):
                return cell
            if (cell.other, cell.model) == (model, other):
                return dataclasses.replace(cell, model=model, other=other, win_rate=cell.win_rate.flipped())
        return None


@dataclass(frozen=True, kw_only=True)
class Tournament:
    """Two models, or many; the first is the baseline."""

    models: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    """Of each other model with the baseline; their p-values by Holm are over all of them and all scorers."""
    rankings: tuple[Ranking, ...] = ()
    """One per scorer, where more than two models were compared."""

    @property
    def headline(self) -> str:
        """Who leads, by the first scorer."""
        if not self.rankings:
            return self.comparisons[0].headline
        first = self.rankings[0]
        order = ", ".join(f"{rank.model} {rank.elo:+.0f}" for rank in first.ranks)
        return f"By {first.scorer}, from the strongest, in Elo against {self.models[0]}: {order}."
