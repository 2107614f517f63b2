"""What the report's template shows of two or many models: a summary, rankings, score distributions, categories."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from diffpo.compare.evidence import Evidence
from diffpo.compare.numbers import percent, span
from diffpo.compare.ranking import Rank
from diffpo.compare.result import Comparison, Ranking, ScorerResult, Stratum, Tournament

BINS = 40
PLOT = (400, 40)
"""Width and height of a histogram in its own units."""

CategoryTable = tuple[str, list[str], list[tuple[str, list[Stratum | None]]]]
"""Scorer, models, and for each category its name and what it says of each model."""


@dataclass(frozen=True)
class Summary:
    """What stands first: who wins, by how much, how sure."""

    verdict: str
    """`better`, `worse` or `unclear`."""
    headline: str
    model: str
    baseline: str
    caution: str
    """Why the headline's scorer is no independent evidence; empty as far as is known."""
    result: ScorerResult | None = None
    """Of `model` against `baseline`; None if the two were not compared."""
    independent: tuple[ScorerResult, ...] = ()
    """Of the scorers that had no part in training, as far as is known."""


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


def summary_of(found: Tournament) -> Summary:
    """Sum up: two models as their comparison does, many by who leads by the first scorer, and what that is worth."""
    if not found.rankings:
        (comparison,) = found.comparisons
        return _summary(comparison, comparison.results[0], comparison.verdict, comparison.headline)
    first, base = found.rankings[0], found.models[0]
    leader, second, *_ = first.ranks
    shown = leader if leader.model != base else second
    if leader is shown:
        headline = f"{leader.model} leads {len(first.ranks)} models by {first.scorer}, {_elo(leader)} ahead of {base}."
    else:
        headline = f"No model is ahead of {base} by {first.scorer}; the nearest is {shown.model} ({_elo(shown)})."
    cell = first.cell(leader.model, second.model) if second.model not in (base, shown.model) else None
    if cell is not None:
        rate = cell.win_rate
        sure = "It is clearly" if rate.ci_low > 0.5 else "It is not clearly"
        won = f"{percent(rate.estimate)} ({span(rate, percent)})"
        headline += f" {sure} ahead of the second, {second.model}: it wins {won}."
    for comparison in found.comparisons:
        for result in comparison.results:
            if (comparison.model, result.scorer) == (shown.model, first.scorer):
                return _summary(comparison, result, result.win_rate.standing, headline)
    return Summary("unclear", headline, shown.model, base, first.in_loop)


def by_scorer(comparisons: Sequence[Comparison]) -> dict[str, list[tuple[Comparison, ScorerResult]]]:
    """Results of all models, scorer by scorer."""
    found: dict[str, list[tuple[Comparison, ScorerResult]]] = {}
    for comparison in comparisons:
        for result in comparison.results:
            found.setdefault(result.scorer, []).append((comparison, result))
    return found


def category_tables(comparisons: Sequence[Comparison]) -> Iterator[CategoryTable]:
    """Win rates by category, a table per scorer; none where prompts have no categories."""
    for scorer, results in by_scorer(comparisons).items():
        strata = [{stratum.category: stratum for stratum in result.strata} for _, result in results]
        names = sorted({name for of_model in strata for name in of_model})
        if names:
            rows = [(name, [of_model.get(name) for of_model in strata]) for name in names]
            yield scorer, [comparison.model for comparison, _ in results], rows


def notes_of(comparisons: Sequence[Comparison]) -> tuple[list[str], list[str]]:
    """Notes that hold for all comparisons, and those of single ones, with the model's label."""
    first = comparisons[0].notes if comparisons else ()
    shared = [note for note in first if all(note in comparison.notes for comparison in comparisons)]
    return shared, [f"{c.model}: {note}" for c in comparisons for note in c.notes if note not in shared]


def elo_axis(ranking: Ranking) -> tuple[float, float]:
    """Both ends of an axis with room for all intervals."""
    ends = [end for rank in ranking.ranks for end in (rank.elo_low, rank.elo_high, rank.elo) if end == end]
    room = 0.05 * (max(ends) - min(ends)) or 1.0
    return min(ends) - room, max(ends) + room


def distribution_of(evidence: Evidence, models: Sequence[str], scorer: str) -> Distribution:
    """Histograms of the scores of every model, in `BINS` bins."""
    rows = zip(models, evidence.images(scorer, models), strict=True)
    scores = {label: np.array([row.score for row in of_model.values()]) for label, of_model in rows}
    everything = np.concatenate(list(scores.values()))
    low, high = float(everything.min()), float(everything.max())
    if low == high:
        width = max(abs(high), 1.0)
        low, high = low - width / 2, low + width / 2
    shares = {
        label: np.histogram(values, bins=BINS, range=(low, high))[0] / max(1, len(values))
        for label, values in scores.items()
    }
    most = max(share.max() for share in shares.values())
    (width, height), step = PLOT, PLOT[0] / BINS
    histograms = []
    for label, values in scores.items():
        heights, mean = shares[label] / most, float(values.mean())
        tops = "".join(f"V{height * (1 - h):.1f}H{(i + 1) * step:.1f}" for i, h in enumerate(heights))
        place = width * (mean - low) / (high - low)
        histograms.append(Histogram(label, path=f"M0 {height}{tops}V{height}Z", mean=mean, place=place))
    return Distribution(scorer, ticks=(low, (low + high) / 2, high), rows=tuple(histograms))


def _summary(comparison: Comparison, first: ScorerResult, verdict: str, headline: str) -> Summary:
    return Summary(
        verdict=verdict,
        headline=headline.removesuffix(f" But {first.in_loop}"),
        model=comparison.model,
        baseline=comparison.baseline,
        caution=first.in_loop,
        result=first,
        independent=tuple(result for result in comparison.results if not result.in_loop),
    )


def _elo(rank: Rank) -> str:
    return f"{rank.elo:+.0f} Elo ({rank.elo_low:+.0f} to {rank.elo_high:+.0f})"
