"""What a reader must know to judge the numbers of a comparison, in sentences."""

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

from diffpo.compare.evidence import Evidence
from diffpo.compare.in_loop import runs_not_found
from diffpo.compare.numbers import number, percent, points
from diffpo.compare.p_values import ALPHA, least_p_value
from diffpo.compare.pairing import Mode
from diffpo.compare.result import ScorerResult
from diffpo.disk.published import published

FEW_PROMPTS = 30
SAMPLING = (
    *("weights", "prompts_hash", "scheduler", "steps", "guidance", "size"),
    *("negative_prompt", "dtype", "device", "batch"),
)
"""Settings that should be the same for both models."""


def notes_on(
    evidence: Evidence, labels: tuple[str, str], results: Sequence[ScorerResult], *, mode: Mode, chosen_by: str | None
) -> Iterator[str]:
    """Say what limits a comparison of `labels`, baseline and model; `results` by scorer, the first for the headline."""
    for result in results:
        if result.in_loop:
            yield result.in_loop[0].upper() + result.in_loop[1:]
    for label, place in runs_not_found([place.settings for place in evidence.scored], labels).items():
        yield (
            f"The run that made {label} is not at {published(place)} any more: which scorers had a hand in it "
            "is not known. Name them with --used-in-training."
        )
    yield from _on_motion(evidence, labels, [result.scorer for result in results])
    yield from _on_size(results[0])
    if mode == "best-of-n" and chosen_by is None:
        yield "Each scorer chose the best images itself, which rewards spread; name another one to choose by."
    yield from _on_noise(evidence, labels, [result.scorer for result in results], mode)
    if len(results) > 1:
        yield (
            f"{len(results)} scorers were asked: a claim that names the best of them needs its p-value adjusted (Holm)."
        )
    yield from _on_sampling(evidence, labels)


def _on_motion(evidence: Evidence, labels: tuple[str, str], names: Sequence[str]) -> Iterator[str]:
    """Say of clips how much they move, or that this is not known: a win rate alone does not show that motion froze."""
    judged = [rows for name in names for rows in evidence.images(name, labels)]
    if all(row.frames == 1 for rows in judged for row in rows.values()):
        return
    scorer = evidence.of_motion(labels)
    if scorer is None:
        yield (
            "How much these clips move was not scored. Training on preferences tends to freeze motion, and quality "
            "alone does not show it: run `diffpo score` on each with `-s frame-change`, and compare again."
        )
        return
    baseline, model = (number(fmean(row.score for row in rows.values())) for rows in evidence.images(scorer, labels))
    yield (
        f"Training on preferences tends to freeze motion. By {scorer}, clips of {labels[1]} move {model} and those of "
        f"{labels[0]} {baseline}; more is not better."
    )


def _on_size(first: ScorerResult) -> Iterator[str]:
    rate, users = first.win_rate, first.users
    if rate.n_prompts < FEW_PROMPTS:
        yield f"Only {rate.n_prompts} prompts: the intervals are rough."
    if least_p_value(rate.n_prompts) > ALPHA:
        yield f"{rate.n_prompts} prompts cannot tell: p is {least_p_value(rate.n_prompts):.2f} at the least."
    if not math.isnan(rate.detectable):
        yield (
            f"{rate.n_prompts} prompts find a win rate by {first.scorer} that is {points(rate.detectable)} points "
            "from even in 80% of such comparisons (two-sided, 5%); smaller effects are often missed."
        )
    if users is not None:
        yield (
            f"Over {users.n_users} users, each counting the same: {percent(users.macro.estimate)} "
            f"({percent(users.macro.ci_low)} to {percent(users.macro.ci_high)}); "
            f"{percent(users.share_above_half)} of them like the model better."
        )


def _on_noise(evidence: Evidence, labels: Sequence[str], names: Sequence[str], mode: Mode) -> Iterator[str]:
    """Say whether images of different prompts began with the same noise, as far as that is known."""
    unknown = evidence.unknown_seeds(names, labels)
    if unknown:
        paired = " Images of a prompt are paired in their order, not by the same noise." if mode == "same-seed" else ""
        yield f"The seeds of {' and '.join(unknown)} are unknown.{paired}"
        return
    images = {key for name in names for rows in evidence.images(name, labels) for key in rows}
    prompts, seeds = {prompt for prompt, _ in images}, {seed for _, seed in images}
    if len(prompts) > 1 and len(seeds) * len(prompts) == len(images):
        shared = "seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
        yield (
            f"All prompts share the same {shared}, hence the same noise: the intervals tell how other prompts would "
            "differ, not how other seeds would. `diffpo generate` gives each prompt noise of its own, unless told "
            "--noise shared."
        )


def _on_sampling(evidence: Evidence, labels: tuple[str, str]) -> Iterator[str]:
    """Say where the two models were sampled differently, as far as their folders tell."""
    places = [evidence.of_model.get(label) for label in labels]
    settings = [place.settings if place is not None else {} for place in places]
    unknown = [label for label, known in zip(labels, settings, strict=True) if not known]
    changed = [key for key in SAMPLING if settings[0].get(key) != settings[1].get(key)]
    if len(unknown) == 1:
        yield f"How the images of {unknown[0]} were sampled is not known; the scores show differences of sampling, too."
    elif changed:
        listed = "; ".join(f"{key} {settings[0].get(key)} and {settings[1].get(key)}" for key in changed)
        yield f"{' and '.join(labels)} were sampled differently, and the scores show both: {listed}."
