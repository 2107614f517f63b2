"""Compares models on the same prompts, scorer by scorer, human votes among them.

sources, votes -> Evidence -> PairedScores -> Comparison (a model with the baseline), Ranking (all) -> Tournament
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from diffpo.compare.evidence import Evidence, read_evidence
from diffpo.compare.notes import notes_on
from diffpo.compare.p_values import benjamini_hochberg, holm
from diffpo.compare.pairing import CHOOSING, MODES, Mode, PairedScores
from diffpo.compare.ranking import FEWER, rank_models
from diffpo.compare.result import Cell, Comparison, Ranking, ScorerResult, Stratum, Tournament
from diffpo.compare.stats import Resampling, mean_difference, per_prompt_means, shares_won, win_rate
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
    resampling: Resampling = field(default_factory=Resampling)
    """How intervals and p-values are drawn."""

    def __post_init__(self):
        """Check before anything is read that there is such a mode, and that it chooses where `chosen_by` is given."""
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
        judging = replace(judging, categories=evidence.categories())
    labels = evidence.choose(models, baseline)
    names = evidence.common_scorers(labels, scorers)
    many = max(len(labels) - 1, len(models)) > 1
    comparisons = []
    for label in labels[1:]:
        known = [name for name in names if not many or evidence.compared(name, label, labels[0])]
        if known:
            comparisons.append(_compare(evidence, labels[0], label, known, judging))
    # Holm over all scorers and models: together they are one claim.
    adjusted = iter(holm([result.win_rate.p_value for one in comparisons for result in one.results]))
    return Tournament(
        models=labels,
        comparisons=tuple(
            replace(one, results=tuple(replace(result, adjusted_p=next(adjusted)) for result in one.results))
            for one in comparisons
        ),
        rankings=tuple(_rank(evidence, name, labels, judging) for name in names) if many else (),
    )


def _compare(evidence: Evidence, baseline: str, model: str, names: Sequence[str], judging: Judging) -> Comparison:
    """A model with the baseline, by these scorers."""
    labels = (baseline, model)
    in_loop = evidence.in_loop(labels, judging.used_in_training)
    results = [_judge(evidence, name, labels, judging, in_loop.get(name, "")) for name in names]
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
    found = _measure(pairs, judging)
    baseline_mean = float(per_prompt_means(pairs.baseline, pairs.prompts).mean())
    return ScorerResult(
        scorer=name,
        model_mean=baseline_mean + found["difference"].estimate,
        baseline_mean=baseline_mean,
        **found,
        provenance=published(evidence.provenance(name, labels)),
        in_loop=in_loop,
        strata=_strata(pairs, judging),
        users=_users(evidence, labels, judging) if name == HUMAN else None,
    )


def _measure(pairs: PairedScores, judging: Judging) -> dict[str, Any]:
    sides, resampling = (pairs.model, pairs.baseline, pairs.prompts), judging.resampling
    return {
        "difference": mean_difference(*sides, resampling=resampling),
        "win_rate": win_rate(*sides, tie_tolerance=pairs.tie_tolerance, resampling=resampling),
    }


def _strata(pairs: PairedScores, judging: Judging) -> tuple[Stratum, ...]:
    """Results per category, if there are two at least."""
    categories, prompts = judging.categories or {}, dict[str, list[str]]()
    for prompt in dict.fromkeys(pairs.prompts):
        if prompt in categories:
            prompts.setdefault(categories[prompt], []).append(prompt)
    if len(prompts) < 2:
        return ()
    found = {name: _measure(pairs.only(prompts[name]), judging) for name in sorted(prompts)}
    adjusted = benjamini_hochberg([part["win_rate"].p_value for part in found.values()])
    return tuple(
        Stratum(category=name, **part, adjusted_p=p) for (name, part), p in zip(found.items(), adjusted, strict=True)
    )


def _users(evidence: Evidence, labels: tuple[str, str], judging: Judging) -> UserWinRate | None:
    """Win rates over users, where it is known who chose and there are two at least."""
    baseline, model = labels
    votes = evidence.votes.between(model, baseline)
    users = [vote.user for vote in votes]
    if None in users or len(set(users)) < 2:
        return None
    shares = [vote.share_of(model) for vote in votes]
    return user_win_rate(shares, [vote.prompt for vote in votes], users, resampling=judging.resampling)


def _rank(evidence: Evidence, name: str, models: Sequence[str], judging: Judging) -> Ranking:
    """All models on one scale, by one scorer."""
    found = {
        (model, other): evidence.pairs(name, model, other, judging.mode, judging.chosen_by)
        for other, model in combinations(models, 2)
        if evidence.compared(name, model, other)
    }
    rates, shares, resampling = [], {}, judging.resampling
    for two, pairs in found.items():
        sides, tolerance = (pairs.model, pairs.baseline), pairs.tie_tolerance
        rates.append(win_rate(*sides, pairs.prompts, tie_tolerance=tolerance, resampling=resampling))
        won = per_prompt_means(shares_won(*sides, tolerance), pairs.prompts)
        shares[two] = dict(zip(dict.fromkeys(pairs.prompts), won.tolist(), strict=True))
    adjusted = benjamini_hochberg([rate.p_value for rate in rates])
    fewer = replace(resampling, resamples=min(FEWER.resamples, resampling.resamples))
    return Ranking(
        scorer=name,
        ranks=tuple(rank_models(shares, models, resampling=fewer)),
        cells=tuple(
            Cell(model=model, other=other, win_rate=rate, adjusted_p=p)
            for (model, other), rate, p in zip(found, rates, adjusted, strict=True)
        ),
        in_loop=evidence.in_loop(models, judging.used_in_training).get(name, ""),
    )
