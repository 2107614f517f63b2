"""Compares two models on the same prompts, scorer by scorer, human votes among them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffpo.compare.comparison import (
    Comparison,
    ScorerResult,
    Stratum,
    comparison_table,
    percent,
    read_comparison,
    write_comparison,
)
from diffpo.compare.evidence import Evidence, read_evidence
from diffpo.compare.exact import benjamini_hochberg, is_pass_fail, mcnemar
from diffpo.compare.pairing import CHOOSING, MODES, Mode, PairedScores, ScoredPair, pair_scores
from diffpo.compare.power import ALPHA, least_p_value
from diffpo.compare.stats import Estimate, Interval, WinRate, holm, mean_difference, win_rate
from diffpo.compare.users import UserWinRate, user_win_rate
from diffpo.compare.votes import HUMAN, Votes
from diffpo.errors import UserError
from diffpo.media.folder import read_settings

__all__ = [
    "Comparison",
    "Judging",
    "ScoredPair",
    "ScorerResult",
    "compare",
    "compare_evidence",
    "comparison_table",
    "pair_scores",
    "read_comparison",
    "write_comparison",
]

TIE_TOLERANCE = 1e-6
"""Relative to the largest score: what rounding in float32 makes of the same image is no win."""
FEW_PROMPTS = 30
_SAMPLING = (
    "weights",
    "prompts_hash",
    "scheduler",
    "steps",
    "guidance",
    "size",
    "negative_prompt",
    "dtype",
    "device",
    "batch",
)


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
    level: float = 0.95
    """Of the intervals."""
    resamples: int = 10_000
    """Of the bootstrap over prompts, and of the permutation test."""
    interval: Interval = "percentile"
    """`percentile` or `bca`."""
    seed: int = 0
    """Of the resampling."""

    def __post_init__(self):
        """Check the values before anything is read."""
        if self.mode not in MODES:
            raise UserError(f"unknown mode {self.mode!r}: choose one of {', '.join(MODES)}.")
        if self.chosen_by is not None and self.mode not in CHOOSING:
            raise UserError(f"mode {self.mode} chooses no image: only {' and '.join(CHOOSING)} do.")
        if not 0 < self.level < 1 or self.resamples < 1:
            raise UserError(f"level is between 0 and 1, resamples at least 1; got {self.level:g} and {self.resamples}.")


def compare(
    sources: Sequence[str | Path],
    *,
    model: str | None = None,
    baseline: str | None = None,
    scorers: Sequence[str] | None = None,
    votes: str | Path | None = None,
    judging: Judging | None = None,
) -> Comparison:
    """Compare two models.

    Args:
        sources: Scored media folders or parquet tables. Where they hold two models, the first is the baseline.
        model: Label of the model.
        baseline: Label of what it is compared with.
        scorers: Which, the first for the headline; by default human votes, then all that scored both.
        votes: A CSV of human votes; see `votes`.
        judging: How they are compared.

    Raises:
        UserError: If a label or a scorer is unknown, the two were not scored on the same prompts (and seeds, where
            these are paired) by the same scorer, or there is one prompt only.
    """
    evidence = read_evidence(sources, votes)
    baseline, model = evidence.two_models(baseline, model)
    return compare_evidence(evidence, baseline, model, scorers, judging or Judging())


def compare_evidence(
    evidence: Evidence, baseline: str, model: str, scorers: Sequence[str] | None, judging: Judging
) -> Comparison:
    """Compare two models of what has been read; see `compare`."""
    labels = (baseline, model)
    names = evidence.common_scorers(labels, scorers)
    pairs = {name: evidence.pairs(name, model, baseline, judging.mode, judging.chosen_by) for name in names}
    categories = evidence.categories() if judging.categories is None else judging.categories
    warnings = evidence.warnings(labels, judging.used_in_training)
    results = [
        dataclasses.replace(
            judge(name, pairs[name], judging),
            provenance=evidence.provenance(name, labels),
            in_loop=warnings.get(name, ""),
            strata=_strata(pairs[name], categories, judging),
            users=_users(evidence.votes, labels, judging) if name == HUMAN else None,
        )
        for name in names
    ]
    first = results[0].win_rate
    return Comparison(
        model=model,
        baseline=baseline,
        n_prompts=first.n_prompts,
        n_pairs=first.n_pairs,
        level=judging.level,
        results=tuple(adjust(results)),
        notes=(
            *warnings_on(results),
            *_notes_on_size(results[0]),
            *_notes_on_pairs(evidence, labels, names, judging),
            *_notes_on_sampling(evidence, labels),
        ),
        mode=judging.mode,
        prompt_set=evidence.prompt_set(labels),
    )


def judge(name: str, pairs: PairedScores, judging: Judging) -> ScorerResult:
    """What one scorer says, on all prompts.

    Raises:
        UserError: If there is one prompt only.
    """
    if len(set(pairs.prompts)) < 2:
        raise UserError(
            f"{name} judged one prompt only ({pairs.prompts[0]!r}): nothing tells how another would come out. Generate "
            "for more prompts; a few hundred tell something."
        )
    difference, rate = _estimates(pairs, judging)
    baseline_mean = mean_difference(pairs.baseline, np.zeros(len(pairs.prompts)), pairs.prompts, resamples=1).estimate
    return ScorerResult(
        scorer=name,
        model_mean=baseline_mean + difference.estimate,
        baseline_mean=baseline_mean,
        difference=difference,
        win_rate=rate,
    )


def adjust(results: Sequence[ScorerResult]) -> list[ScorerResult]:
    """Fill in the p-values by Holm of results that make one claim."""
    adjusted = holm([result.win_rate.p_value for result in results])
    return [dataclasses.replace(result, adjusted_p=p) for result, p in zip(results, adjusted, strict=True)]


def tolerance_of(pairs: PairedScores) -> float:
    """How near two scores are a tie."""
    return TIE_TOLERANCE * float(np.abs(np.concatenate([pairs.model, pairs.baseline])).max())


def warnings_on(results: Sequence[ScorerResult]) -> list[str]:
    """Notes on scorers that had a hand in training."""
    return [result.in_loop[0].upper() + result.in_loop[1:] for result in results if result.in_loop]


def _estimates(pairs: PairedScores, judging: Judging) -> tuple[Estimate, WinRate]:
    a, b, prompts = pairs.model, pairs.baseline, pairs.prompts
    resampling = {
        "level": judging.level,
        "resamples": judging.resamples,
        "interval": judging.interval,
        "seed": judging.seed,
    }
    rate = win_rate(a, b, prompts, tie_tolerance=tolerance_of(pairs), **resampling)
    if rate.n_pairs == rate.n_prompts and rate.test == "sign-flip" and is_pass_fail(np.concatenate([a, b])):
        rate = dataclasses.replace(rate, p_value=mcnemar(a, b).p_value, test="mcnemar")
    return mean_difference(a, b, prompts, **resampling), rate


def _strata(pairs: PairedScores, categories: Mapping[str, str], judging: Judging) -> tuple[Stratum, ...]:
    """Results per category, if there are two at least."""
    prompts: dict[str, list[str]] = {}
    for prompt in dict.fromkeys(pairs.prompts):
        if prompt in categories:
            prompts.setdefault(categories[prompt], []).append(prompt)
    if len(prompts) < 2:
        return ()
    found = [(name, *_estimates(pairs.only(prompts[name]), judging)) for name in sorted(prompts)]
    adjusted = benjamini_hochberg([rate.p_value for _, _, rate in found])
    return tuple(
        Stratum(category=name, difference=difference, win_rate=rate, adjusted_p=p)
        for (name, difference, rate), p in zip(found, adjusted, strict=True)
    )


def _users(votes: Votes | None, labels: tuple[str, str], judging: Judging) -> UserWinRate | None:
    baseline, model = labels
    found = votes.between(model, baseline) if votes else []
    if len({vote.user for vote in found}) < 2 or any(vote.user is None for vote in found):
        return None
    return user_win_rate(
        [vote.share_of(model) for vote in found],
        [vote.prompt for vote in found],
        [vote.user for vote in found],
        level=judging.level,
        resamples=judging.resamples,
        seed=judging.seed,
    )


def _notes_on_size(first: ScorerResult) -> list[str]:
    rate = first.win_rate
    notes = [f"Only {rate.n_prompts} prompts: the intervals are rough."] if rate.n_prompts < FEW_PROMPTS else []
    if least_p_value(rate.n_prompts) > ALPHA:
        notes.append(f"{rate.n_prompts} prompts cannot tell: p is {least_p_value(rate.n_prompts):.2f} at the least.")
    if rate.detectable == rate.detectable:
        notes.append(
            f"{rate.n_prompts} prompts find a win rate by {first.scorer} that is {100 * rate.detectable:.1f} points "
            "from even in 80% of such comparisons (two-sided, 5%); smaller effects are often missed."
        )
    if first.users is not None:
        users = first.users
        notes.append(
            f"Over {users.n_users} users, each counting the same: {percent(users.macro.estimate)} "
            f"({percent(users.macro.ci_low)} to {percent(users.macro.ci_high)}); "
            f"{percent(users.share_above_half)} of them like the model better."
        )
    return notes


def _notes_on_pairs(evidence: Evidence, labels: tuple[str, str], names: Sequence[str], judging: Judging) -> list[str]:
    notes = []
    if judging.mode == "best-of-n" and judging.chosen_by is None:
        notes.append("Each scorer chose the best images itself, which rewards spread; name another one to choose by.")
    rows = [row for table in evidence.tables for row in table.rows if row.model in labels and row.scorer in names]
    images = {(row.prompt, row.seed) for row in rows}
    prompts, seeds = {prompt for prompt, _ in images}, {seed for _, seed in images}
    if len(prompts) > 1 and len(seeds) * len(prompts) == len(images):
        shared = "seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
        notes.append(
            f"All prompts share the same {shared}, hence the same noise: the intervals tell how other prompts would "
            "differ, not how other seeds would. Generating with --distinct-seeds gives each prompt its own noise."
        )
    if len(names) > 1:
        notes.append(
            f"{len(names)} scorers were asked: a claim that names the best of them needs its p-value adjusted (Holm)."
        )
    return notes


def _notes_on_sampling(evidence: Evidence, labels: tuple[str, str]) -> list[str]:
    """Say where the two models were sampled differently, as far as their folders tell."""
    settings = {
        label: read_settings(source)
        for source, table in zip(evidence.sources, evidence.tables, strict=True)
        for label in labels
        if source.is_dir() and label in table.models
    }
    if len(settings) < 2:
        return []
    first, second = (settings[label] for label in labels)
    changed = [key for key in _SAMPLING if first.get(key) != second.get(key)]
    listed = "; ".join(f"{key} {first.get(key)} and {second.get(key)}" for key in changed)
    return [f"{' and '.join(labels)} were sampled differently, and the scores show both: {listed}."] if changed else []
