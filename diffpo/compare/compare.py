"""Compares models on the same prompts, scorer by scorer, human votes among them.

sources, votes -> Evidence -> PairedScores -> Comparison (a model with the baseline), Ranking (all) -> Tournament
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from diffpo.compare.evidence import Evidence, read_evidence
from diffpo.compare.notes import notes_on
from diffpo.compare.p_values import benjamini_hochberg, holm
from diffpo.compare.pairing import CHOOSING, MODES, Mode, PairedScores
from diffpo.compare.ranking import FEWER, rank_models
from diffpo.compare.result import Cell, Comparison, Ranking, ScorerResult, Stratum, Tournament
from diffpo.compare.stats import Resampling, WinRate, mean_difference, per_prompt_means, shares_won, win_rate
from diffpo.compare.users import UserWinRate, user_win_rate
from diffpo.compare.votes import HUMAN
from diffpo.disk.published import published
from diffpo.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Judging:
    """How models are compared."""

    mode: Mode = "same-seed"
    """Which images are compared; see `pairing`. Votes are what they are."""
    chosen_by: str | None = None
    """The scorer that chooses the image in `median-image` and `best-of-n`; None: each scorer for itself."""
    used_in_training: tuple[str, ...] = ()
    """Scorers that had a hand in training or selection, beside those that the runs name."""
    categories: Mapping[str, str] | None = None
    """Prompt -> category; None: what the media folders know."""
    resampling: Resampling = dataclasses.field(default_factory=Resampling)
    """How intervals and p-values are drawn."""

    def __post_init__(self):
        """Check the values before anything is read.

        Raises:
            UserError: There is no such mode, or it chooses no image.
        """
        if self.mode not in MODES:
            raise UserError(f"unknown mode {self.mode!r}: choose one of {', '.join(MODES)}.")
        if self.chosen_by is not None and self.mode not in CHOOSING:
            raise UserError(f"mode {self.mode} chooses no image: only {' and '.join(CHOOSING)} do.")


def compare(
    sources: Sequence[str | Path],
    *,
    models: Sequence[str] = (),
    baseline: str | None = None,
    scorers: Sequence[str] | None = None,
    votes: str | Path | None = None,
    judging: Judging | None = None,
) -> Tournament:
    """Compare two models, or many, which are ranked as well.

    Args:
        sources: Scored media folders or parquet tables.
        models: Labels; all by default.
        baseline: The one that each other is compared with, and that is at Elo 0; the first by default.
        scorers: Which, the first for the headline; by default human votes, then all that scored every model.
        votes: A CSV of human votes; see `votes`. Of many models, pairs without a vote stay empty.
        judging: How they are compared.

    Raises:
        UserError: If a label or a scorer is unknown, models were not scored on the same prompts (and seeds, where
            these are paired) by the same scorer, or there is one model or one prompt only.
    """
    evidence, judging = read_evidence(sources, votes), judging or Judging()
    if judging.categories is None:
        judging = dataclasses.replace(judging, categories=evidence.categories())
    labels = evidence.choose(models, baseline)
    names = evidence.common_scorers(labels, scorers)
    many = max(len(labels) - 1, len(models)) > 1
    comparisons = []
    for label in labels[1:]:
        known = [name for name in names if not many or evidence.compared(name, label, labels[0])]
        if known:
            comparisons.append(_compare(evidence, labels[0], label, known, judging))
    return Tournament(
        models=labels,
        comparisons=_adjusted(comparisons),
        rankings=tuple(_rank(evidence, name, labels, judging) for name in names) if many else (),
    )


def _compare(evidence: Evidence, baseline: str, model: str, names: Sequence[str], judging: Judging) -> Comparison:
    """A model with the baseline, by these scorers."""
    labels = (baseline, model)
    warnings = evidence.warnings(labels, judging.used_in_training)
    results = [_judge(evidence, name, labels, judging, warnings.get(name, "")) for name in names]
    first = results[0].win_rate
    return Comparison(
        model=model,
        baseline=baseline,
        n_prompts=first.n_prompts,
        n_pairs=first.n_pairs,
        level=judging.resampling.level,
        results=tuple(results),
        notes=tuple(notes_on(evidence, labels, results, mode=judging.mode, chosen_by=judging.chosen_by)),
        mode=judging.mode,
        prompt_set=evidence.prompt_set(labels),
        seeds_known=not evidence.unknown_seeds(names, labels),
    )


def _judge(evidence: Evidence, name: str, labels: tuple[str, str], judging: Judging, in_loop: str) -> ScorerResult:
    """What one scorer says, on all prompts and by category."""
    baseline, model = labels
    pairs = evidence.pairs(name, model, baseline, judging.mode, judging.chosen_by)
    rate = _win_rate(name, pairs, judging)
    difference = mean_difference(pairs.model, pairs.baseline, pairs.prompts, resampling=judging.resampling)
    baseline_mean = float(per_prompt_means(pairs.baseline, pairs.prompts).mean())
    return ScorerResult(
        scorer=name,
        model_mean=baseline_mean + difference.estimate,
        baseline_mean=baseline_mean,
        difference=difference,
        win_rate=rate,
        provenance=published(evidence.provenance(name, labels)),
        in_loop=in_loop,
        strata=_strata(pairs, judging),
        users=_users(evidence, labels, judging) if name == HUMAN else None,
    )


def _win_rate(name: str, pairs: PairedScores, judging: Judging) -> WinRate:
    """The win rate on all prompts.

    Raises:
        UserError: If there is one prompt only.
    """
    if len(set(pairs.prompts)) < 2:
        raise UserError(
            f"{name} judged one prompt only ({pairs.prompts[0]!r}): nothing tells how another would come out. Generate "
            "for more prompts; a few hundred tell something."
        )
    return _rate_of(pairs, judging)


def _rate_of(pairs: PairedScores, judging: Judging) -> WinRate:
    return win_rate(
        pairs.model, pairs.baseline, pairs.prompts, tie_tolerance=pairs.tie_tolerance, resampling=judging.resampling
    )


def _strata(pairs: PairedScores, judging: Judging) -> tuple[Stratum, ...]:
    """Results per category, if there are two at least."""
    categories, prompts = judging.categories or {}, dict[str, list[str]]()
    for prompt in dict.fromkeys(pairs.prompts):
        if prompt in categories:
            prompts.setdefault(categories[prompt], []).append(prompt)
    if len(prompts) < 2:
        return ()
    parts = {name: pairs.only(prompts[name]) for name in sorted(prompts)}
    rates = {name: _rate_of(part, judging) for name, part in parts.items()}
    adjusted = benjamini_hochberg([rate.p_value for rate in rates.values()])
    return tuple(
        Stratum(
            category=name,
            difference=mean_difference(part.model, part.baseline, part.prompts, resampling=judging.resampling),
            win_rate=rates[name],
            adjusted_p=p,
        )
        for (name, part), p in zip(parts.items(), adjusted, strict=True)
    )


def _users(evidence: Evidence, labels: tuple[str, str], judging: Judging) -> UserWinRate | None:
    """Win rates over users, where it is known who chose and there are two at least."""
    assert evidence.votes is not None
    baseline, model = labels
    votes = evidence.votes.between(model, baseline)
    users = [vote.user for vote in votes]
    if None in users or len(set(users)) < 2:
        return None
    shares = [vote.share_of(model) for vote in votes]
    return user_win_rate(shares, [vote.prompt for vote in votes], users, resampling=judging.resampling)


def _adjusted(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """Holm over all scorers and models: together they are one claim."""
    results = [result for comparison in comparisons for result in comparison.results]
    adjusted = iter(holm([result.win_rate.p_value for result in results]))
    return tuple(
        dataclasses.replace(
            comparison,
            results=tuple(dataclasses.replace(result, adjusted_p=next(adjusted)) for result in comparison.results),
        )
        for comparison in comparisons
    )


def _rank(evidence: Evidence, name: str, models: Sequence[str], judging: Judging) -> Ranking:
    """All models on one scale, by one scorer."""
    found = {
        (model, other): evidence.pairs(name, model, other, judging.mode, judging.chosen_by)
        for other, model in combinations(models, 2)
        if evidence.compared(name, model, other)
    }
    rates = {pair: _win_rate(name, scores, judging) for pair, scores in found.items()}
    adjusted = benjamini_hochberg([rate.p_value for rate in rates.values()])
    resampling = judging.resampling
    ranks = rank_models(
        {pair: _shares(scores) for pair, scores in found.items()},
        models,
        resampling=dataclasses.replace(resampling, resamples=min(FEWER.resamples, resampling.resamples)),
    )
    return Ranking(
        scorer=name,
        ranks=tuple(ranks),
        cells=tuple(
            Cell(model=model, other=other, win_rate=rate, adjusted_p=p)
            for ((model, other), rate), p in zip(rates.items(), adjusted, strict=True)
        ),
        in_loop=evidence.warnings(models, judging.used_in_training).get(name, ""),
    )


def _shares(pairs: PairedScores) -> dict[str, float]:
    """Share of each prompt's comparisons that the model won."""
    won = shares_won(pairs.model, pairs.baseline, pairs.tie_tolerance)
    return dict(zip(dict.fromkeys(pairs.prompts), per_prompt_means(won, pairs.prompts).tolist(), strict=True))
