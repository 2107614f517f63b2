"""Compares many models: each with the baseline, each with each, and all on one scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from diffpo.compare.compare import Judging, adjust, compare_evidence, judge, tolerance_of
from diffpo.compare.comparison import Comparison, comparison_record
from diffpo.compare.evidence import Evidence, read_evidence
from diffpo.compare.exact import benjamini_hochberg
from diffpo.compare.pairing import PairedScores
from diffpo.compare.ranking import Rank, rank_models
from diffpo.compare.stats import WinRate, per_prompt_means
from diffpo.compare.votes import HUMAN
from diffpo.disk.files import without_nan, write_json
from diffpo.errors import UserError

FORMAT = "diffpo tournament 1"
REFITS = 1000
"""Resamples of the ranking, at most: each one is a fit."""


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

    def win_rate(self, model: str, other: str) -> float | None:
        """How often `model` beats `other`; None if they were not compared."""
        for cell in self.cells:
            if (cell.model, cell.other) == (model, other):
                return cell.win_rate.estimate
            if (cell.other, cell.model) == (model, other):
                return 1 - cell.win_rate.estimate
        return None


@dataclass(frozen=True, kw_only=True)
class Tournament:
    """Many models; the first is the baseline."""

    models: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    """Of each other model with the baseline; their p-values by Holm are over all of them and all scorers."""
    rankings: tuple[Ranking, ...]
    """One per scorer."""

    @property
    def headline(self) -> str:
        """Who leads, by the first scorer."""
        first = self.rankings[0]
        order = ", ".join(f"{rank.model} {rank.elo:+.0f}" for rank in first.ranks)
        return f"By {first.scorer}, from the strongest, in Elo against {self.models[0]}: {order}."


def compare_all(
    sources: Sequence[str | Path],
    *,
    models: Sequence[str] | None = None,
    baseline: str | None = None,
    scorers: Sequence[str] | None = None,
    votes: str | Path | None = None,
    judging: Judging | None = None,
) -> Tournament:
    """Compare many models.

    Args:
        sources: Scored media folders or parquet tables.
        models: Labels; all by default.
        baseline: The one at Elo 0 with which each is compared; the first by default.
        scorers: Which; by default human votes, then all that scored every model.
        votes: A CSV of human votes; pairs of models without a vote stay empty.
        judging: How they are compared.

    Raises:
        UserError: As `compare`; or if there are fewer than two models.
    """
    evidence = read_evidence(sources, votes)
    return compare_all_evidence(evidence, models or (), baseline, scorers, judging or Judging())


def compare_all_evidence(
    evidence: Evidence, models: Sequence[str], baseline: str | None, scorers: Sequence[str] | None, judging: Judging
) -> Tournament:
    """Compare many models of what has been read; see `compare_all`."""
    evidence.check_labels([*models, *([baseline] if baseline else ())])
    chosen = list(dict.fromkeys(models or evidence.models))
    baseline = baseline or (chosen[0] if chosen else None)
    if baseline is None or len({*chosen, baseline}) < 2:
        raise UserError(f"need two models at least to compare, found {', '.join(chosen) or 'none'}.")
    chosen = [baseline, *(label for label in chosen if label != baseline)]
    names = evidence.common_scorers(chosen, scorers)
    comparisons = [_against(evidence, baseline, label, names, judging) for label in chosen[1:]]
    warnings = evidence.warnings(chosen, judging.used_in_training)
    return Tournament(
        models=tuple(chosen),
        comparisons=_adjust_together([comparison for comparison in comparisons if comparison is not None]),
        rankings=tuple(_rank(evidence, name, chosen, judging, warnings.get(name, "")) for name in names),
    )


def write_tournament(path: str | Path, tournament: Tournament) -> None:
    """Write a tournament as JSON; each of its `comparisons` is what `write_comparison` writes."""
    value: dict[str, Any] = {
        "format": FORMAT,
        "headline": tournament.headline,
        "models": list(tournament.models),
        "rankings": [without_nan(asdict(ranking)) for ranking in tournament.rankings],
        "comparisons": [comparison_record(comparison) for comparison in tournament.comparisons],
    }
    write_json(Path(path), value)


def _against(
    evidence: Evidence, baseline: str, label: str, names: Sequence[str], judging: Judging
) -> Comparison | None:
    """A model with the baseline, by the scorers that compared the two."""
    known = [name for name in names if _were_compared(evidence, name, label, baseline)]
    return compare_evidence(evidence, baseline, label, known, judging) if known else None


def _were_compared(evidence: Evidence, name: str, model: str, other: str) -> bool:
    """Whether a scorer has both: only votes may lack a pair."""
    votes = evidence.votes.votes if evidence.votes and name == HUMAN else ()
    return name != HUMAN or any({vote.model_a, vote.model_b} == {model, other} for vote in votes)


def _adjust_together(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """Holm over all scorers and models: together they are one claim."""
    adjusted = iter(adjust([result for comparison in comparisons for result in comparison.results]))
    return tuple(
        dataclasses.replace(comparison, results=tuple(next(adjusted) for _ in comparison.results))
        for comparison in comparisons
    )


def _rank(evidence: Evidence, name: str, models: Sequence[str], judging: Judging, in_loop: str) -> Ranking:
    found: dict[tuple[str, str], PairedScores] = {
        (model, other): evidence.pairs(name, model, other, judging.mode, judging.chosen_by)
        for other, model in combinations(models, 2)
        if _were_compared(evidence, name, model, other)
    }
    evidence.provenance(name, models)  # scores that were made differently are not ranked
    rates = {pair: judge(name, scores, judging).win_rate for pair, scores in found.items()}
    adjusted = benjamini_hochberg([rate.p_value for rate in rates.values()])
    ranks = rank_models(
        {pair: _shares(scores) for pair, scores in found.items()},
        models,
        level=judging.level,
        resamples=min(REFITS, judging.resamples),
        seed=judging.seed,
    )
    return Ranking(
        scorer=name,
        ranks=tuple(ranks),
        cells=tuple(
            Cell(model=model, other=other, win_rate=rate, adjusted_p=p)
            for ((model, other), rate), p in zip(rates.items(), adjusted, strict=True)
        ),
        in_loop=in_loop,
    )


def _shares(pairs: PairedScores) -> dict[str, float]:
    """Share of each prompt's comparisons won; ties as in `compare`."""
    tolerance = tolerance_of(pairs)
    difference = pairs.model - pairs.baseline
    won = 0.5 + 0.5 * (difference > tolerance) - 0.5 * (difference < -tolerance)
    return dict(zip(dict.fromkeys(pairs.prompts), per_prompt_means(won, pairs.prompts).tolist(), strict=True))
