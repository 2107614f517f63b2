"""What the report's template shows of two or many models: a summary, rankings, score distributions, categories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffpo.compare.evidence import Evidence
from diffpo.compare.numbers import p_value, percent, points, span
from diffpo.compare.ranking import Rank
from diffpo.compare.result import Cell, Comparison, Ranking, ScorerResult, Stratum, Tournament
from diffpo.compare.stats import WinRate
from diffpo.compare.votes import HUMAN

BINS = 40
PLOT = (400, 40)
"""Width and height of a histogram in its own units."""


@dataclass(frozen=True)
class Summary:
    """What stands first: who wins, by how much, how sure."""

    verdict: str
    """`better`, `worse` or `unclear`."""
    headline: str
    model: str
    baseline: str
    rate: WinRate | None
    """Of `model` over `baseline`; None if the two were not compared."""
    facts: tuple[tuple[str, str], ...]
    """(value, what it is)."""
    caution: str
    """Why the headline's scorer is no independent evidence; empty as far as is known."""
    independent: str
    """What scorers say that had no part in training; empty where that is all or none."""


@dataclass(frozen=True)
class Matrix:
    """One scorer's ranking and its Elo axis."""

    ranking: Ranking
    low: float
    """Left end of the Elo axis."""
    high: float

    def place(self, elo: float) -> str:
        """An Elo as a CSS length along the axis."""
        return f"{100 * (elo - self.low) / (self.high - self.low):.2f}%"


@dataclass(frozen=True)
class Histogram:
    """Scores of one model by one scorer."""

    label: str
    path: str
    """Of an SVG of the size `PLOT`."""
    mean: float
    place: float
    """Of the mean, in units of the plot."""


@dataclass(frozen=True)
class Distribution:
    """Scores of all models by one scorer, on one axis."""

    scorer: str
    ticks: tuple[float, ...]
    """Lowest, middle and highest score of all."""
    rows: tuple[Histogram, ...]


@dataclass(frozen=True)
class CategoryTable:
    """Win rates by category, by one scorer."""

    scorer: str
    models: tuple[str, ...]
    """Each against the baseline."""
    rows: tuple[tuple[str, tuple[Stratum | None, ...]], ...]


def summary_of(found: Tournament) -> Summary:
    """Sum up: two models as their comparison does, many by who leads."""
    if found.rankings:
        return _leader(found)
    (comparison,) = found.comparisons
    return _summary(comparison, comparison.results[0], comparison.verdict, comparison.headline)


def by_scorer(comparisons: Sequence[Comparison]) -> list[tuple[str, list[tuple[Comparison, ScorerResult]]]]:
    """Results of all models, scorer by scorer."""
    found: dict[str, list[tuple[Comparison, ScorerResult]]] = {}
    for comparison in comparisons:
        for result in comparison.results:
            found.setdefault(result.scorer, []).append((comparison, result))
    return list(found.items())


def category_tables(comparisons: Sequence[Comparison]) -> list[CategoryTable]:
    """Win rates by category, a table per scorer; empty where prompts have no categories."""
    tables = []
    for scorer, results in by_scorer(comparisons):
        strata = [{stratum.category: stratum for stratum in result.strata} for _, result in results]
        names = sorted({name for of_model in strata for name in of_model})
        rows = tuple((name, tuple(of_model.get(name) for of_model in strata)) for name in names)
        if rows:
            tables.append(CategoryTable(scorer, tuple(comparison.model for comparison, _ in results), rows))
    return tables


def notes_of(comparisons: Sequence[Comparison]) -> tuple[list[str], list[str]]:
    """Notes that hold for all comparisons, and those of single ones, with the model's label."""
    shared = [
        note
        for note in (comparisons[0].notes if comparisons else ())
        if all(note in comparison.notes for comparison in comparisons)
    ]
    single = [f"{c.model}: {note}" for c in comparisons for note in c.notes if note not in shared]
    return shared, single


def matrix_of(ranking: Ranking) -> Matrix:
    """Give a ranking an axis with room for all intervals."""
    ends = [end for rank in ranking.ranks for end in (rank.elo_low, rank.elo_high, rank.elo) if end == end]
    room = 0.05 * (max(ends) - min(ends)) or 1.0
    return Matrix(ranking, min(ends) - room, max(ends) + room)


def distributions_of(evidence: Evidence, models: Sequence[str], scorers: Sequence[str]) -> list[Distribution]:
    """Histograms of the scores of every model by every scorer; votes are no scores."""
    return [_distribution(evidence, models, scorer) for scorer in scorers if scorer != HUMAN]


def histogram_shares(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Shares of the values in each of `BINS` equal bins from `low` to `high`, `[BINS]`."""
    counts, _ = np.histogram(values, bins=BINS, range=(low, high))
    return counts / max(1, len(values))


def _distribution(evidence: Evidence, models: Sequence[str], scorer: str) -> Distribution:
    rows = zip(models, evidence.images(scorer, models), strict=True)
    scores = {label: np.array([row.score for row in of_model.values()]) for label, of_model in rows}
    everything = np.concatenate(list(scores.values()))
    low, high = float(everything.min()), float(everything.max())
    width = high - low or max(abs(high), 1.0)
    start, end = (low, high) if high > low else (low - width / 2, low + width / 2)
    shares = {label: histogram_shares(values, start, end) for label, values in scores.items()}
    most = max(share.max() for share in shares.values())
    return Distribution(
        scorer=scorer,
        ticks=(start, (start + end) / 2, end),
        rows=tuple(
            Histogram(
                label=label,
                path=_steps(shares[label] / most),
                mean=float(values.mean()),
                place=PLOT[0] * (float(values.mean()) - start) / (end - start),
            )
            for label, values in scores.items()
        ),
    )


def _steps(heights: NDArray[np.float64]) -> str:
    """An SVG path of bars side by side, of heights between 0 and 1."""
    width, height = PLOT
    step = width / len(heights)
    tops = "".join(f"V{height * (1 - h):.1f}H{(i + 1) * step:.1f}" for i, h in enumerate(heights))
    return f"M0 {height}{tops}V{height}Z"


def _summary(comparison: Comparison, first: ScorerResult, verdict: str, headline: str) -> Summary:
    rate = first.win_rate
    others = [result for result in comparison.results if not result.in_loop]
    independent = ", ".join(f"{r.scorer} {percent(r.win_rate.estimate)} ({span(r.win_rate, percent)})" for r in others)
    return Summary(
        verdict=verdict,
        headline=headline.removesuffix(f" But {first.in_loop}") if first.in_loop else headline,
        model=comparison.model,
        baseline=comparison.baseline,
        rate=rate,
        facts=(
            (span(rate, percent), f"{comparison.level:.0%} interval"),
            (p_value(first.adjusted_p), "p, by Holm"),
            (f"{points(rate.detectable)} points", "minimum detectable effect (80% power)"),
            (f"{rate.n_prompts}", "prompts"),
        ),
        caution=first.in_loop,
        independent=f"Win rate by the scorers without a known part in it: {independent}."
        if first.in_loop and others
        else "",
    )


def _leader(tournament: Tournament) -> Summary:
    """Who leads by the first scorer, and what that is worth."""
    first = tournament.rankings[0]
    base = tournament.models[0]
    leader, *rest = first.ranks
    shown = next(rank for rank in first.ranks if rank.model != base) if leader.model == base else leader
    comparison = next((c for c in tournament.comparisons if c.model == shown.model), None)
    result = next((r for r in comparison.results if r.scorer == first.scorer), None) if comparison else None
    opening = (
        f"{leader.model} leads {len(first.ranks)} models by {first.scorer}, {_elo(leader)} ahead of {base}."
        if leader.model != base
        else f"No model is ahead of {base} by {first.scorer}; the nearest is {shown.model} ({_elo(shown)})."
    )
    second = first.cell(leader.model, rest[0].model) if rest[0].model not in (base, shown.model) else None
    headline = opening + (_against_second(second) if second is not None else "")
    if comparison is None or result is None:
        return Summary("unclear", headline, shown.model, base, None, (), first.in_loop, "")
    return _summary(comparison, result, result.win_rate.standing, headline)


def _against_second(cell: Cell) -> str:
    rate = cell.win_rate
    sure = "It is clearly" if rate.ci_low > 0.5 else "It is not clearly"
    return f" {sure} ahead of the second, {cell.other}: it wins {percent(rate.estimate)} ({span(rate, percent)})."


def _elo(rank: Rank) -> str:
    return f"{rank.elo:+.0f} Elo ({rank.elo_low:+.0f} to {rank.elo_high:+.0f})"
