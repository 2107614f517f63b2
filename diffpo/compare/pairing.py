"""Which image of one model is compared with which of the other: from `scores[model, prompt, seed]` to pairs.

    same-seed        the images of the same prompt and seed: the same initial noise      the default
    all-pairs        every image of a prompt with every one of the other model
    median-image     per prompt, the image of median score of each model
    best-of-n        per prompt, the best image of each model
    mean-over-seeds  per prompt, the mean score of each model

Which image is the median or the best one may be chosen by another scorer than the one that then judges it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from diffpo.errors import UserError
from diffpo.scorers.scores import ScoreRow, ScoreTable

Mode = Literal["same-seed", "all-pairs", "median-image", "best-of-n", "mean-over-seeds"]
MODES: tuple[Mode, ...] = get_args(Mode)
CHOOSING: tuple[Mode, ...] = ("median-image", "best-of-n")

Scores = Mapping[str, Mapping[int, float]]
"""One model's scores by one scorer: prompt -> seed -> score."""


@dataclass(frozen=True)
class PairedScores:
    """Scores side by side, prompt after prompt."""

    model: NDArray[np.float64]
    """`[n]`"""
    baseline: NDArray[np.float64]
    """`[n]`"""
    prompts: tuple[str, ...]
    """`[n]`"""

    def only(self, prompts: Iterable[str]) -> PairedScores:
        """Those of some prompts."""
        wanted = set(prompts)
        rows = [i for i, prompt in enumerate(self.prompts) if prompt in wanted]
        return PairedScores(self.model[rows], self.baseline[rows], tuple(self.prompts[i] for i in rows))

    def flipped(self) -> PairedScores:
        """The same with the models exchanged."""
        return PairedScores(self.baseline, self.model, self.prompts)


@dataclass(frozen=True)
class ScoredPair:
    """The images of two models for one prompt and seed, as one scorer sees them."""

    model: ScoreRow
    baseline: ScoreRow

    @property
    def gain(self) -> float:
        """How much better the model's image is."""
        return self.model.score - self.baseline.score


def pair_values(
    model: Scores, baseline: Scores, mode: Mode = "same-seed", *, chosen_by: tuple[Scores, Scores] | None = None
) -> PairedScores:
    """Pair two models' scores, prompts in alphabetical order.

    Args:
        model: Scores of the model.
        baseline: Scores of the baseline, for the same prompts; for `same-seed` also for the same seeds, for
            `best-of-n` as many per prompt: the best of more images is better.
        mode: See the top of this file. Of an even number of images the median one is the lower of the middle two.
        chosen_by: Scores of the same images, of model and baseline, that choose the image in `median-image` and
            `best-of-n`; None: the scores themselves.

    Raises:
        UserError: If the two do not fit, there is no prompt, or a score is not a number.
    """
    if mode not in MODES:
        raise UserError(f"unknown mode {mode!r}: choose one of {', '.join(MODES)}.")
    if chosen_by is not None and mode not in CHOOSING:
        raise UserError(f"mode {mode} chooses no image: only {' and '.join(CHOOSING)} can be told what to choose by.")
    _check_fit(model, baseline, mode)
    first, second = chosen_by or (model, baseline)
    a, b, prompts = [], [], []
    for prompt in sorted(model):  # resampling must not depend on the order of rows
        mine = _prompt_values(model[prompt], first.get(prompt, {}), mode, prompt)
        other = _prompt_values(baseline[prompt], second.get(prompt, {}), mode, prompt)
        if mode == "all-pairs":
            mine, other = [x for x in mine for _ in other], other * len(mine)
        a += mine
        b += other
        prompts += [prompt] * len(mine)
    return PairedScores(np.array(a), np.array(b), tuple(prompts))


def pair_scores(tables: Sequence[ScoreTable], scorer: str, *, model: str, baseline: str) -> list[ScoredPair]:
    """Bring one scorer's rows of two models together by prompt and seed.

    Raises:
        UserError: If the two do not have the same prompts and seeds; it says how many match.
    """
    first, second = (rows_by_image(tables, scorer, label) for label in (model, baseline))
    check_same_images(first, second, (model, baseline), scorer)
    return [ScoredPair(first[key], second[key]) for key in sorted(first)]


def check_same_images(
    first: Mapping[tuple[str, int], object],
    second: Mapping[tuple[str, int], object],
    labels: tuple[str, str],
    scorer: str,
) -> None:
    """Check that two models were scored on the same prompts and seeds.

    Raises:
        UserError: If not; it says how many match.
    """
    common = len(first.keys() & second.keys())
    if common < max(len(first), len(second)):
        raise UserError(
            f"{' and '.join(labels)} were not scored on the same prompts and seeds by {scorer}: {common} match; "
            f"others: {len(first) - common} of {labels[0]}, {len(second) - common} of {labels[1]}. "
            "Generate both from the same prompts with the same seeds, then score both."
        )


def rows_by_image(tables: Sequence[ScoreTable], scorer: str, label: str) -> dict[tuple[str, int], ScoreRow]:
    """One model's rows of one scorer by (prompt, seed).

    Raises:
        UserError: If an image has two scores.
    """
    rows: dict[tuple[str, int], ScoreRow] = {}
    for table in tables:
        for row in table.rows:
            if (row.scorer, row.model) == (scorer, label):
                if (row.prompt, row.seed) in rows:
                    raise UserError(
                        f"{label} has two scores of {scorer} for the prompt {row.prompt!r}, seed {row.seed}."
                    )
                rows[row.prompt, row.seed] = row
    return rows


def scores_by_prompt(rows: Mapping[tuple[str, int], ScoreRow]) -> dict[str, dict[int, float]]:
    """The scores of one model as `pair_values` takes them."""
    scores: dict[str, dict[int, float]] = {}
    for (prompt, seed), row in rows.items():
        scores.setdefault(prompt, {})[seed] = row.score
    return scores


def _prompt_values(scores: Mapping[int, float], choices: Mapping[int, float], mode: Mode, prompt: str) -> list[float]:
    """What one model enters with for one prompt."""
    if mode in ("same-seed", "all-pairs"):
        return [scores[seed] for seed in sorted(scores)]
    if mode == "mean-over-seeds":
        return [float(np.mean(list(scores.values())))]
    if choices.keys() != scores.keys():
        raise UserError(f"the scorer that chooses did not score the same images of {prompt!r}. Run `diffpo score`.")
    if not all(map(math.isfinite, choices.values())):
        raise UserError(f"a score of {prompt!r} that should choose an image is not a finite number. Score it again.")
    ranked = sorted(scores, key=lambda seed: (choices[seed], seed))
    return [scores[ranked[-1] if mode == "best-of-n" else ranked[(len(ranked) - 1) // 2]]]


def _check_fit(model: Scores, baseline: Scores, mode: Mode) -> None:
    if not model or model.keys() != baseline.keys():
        common = len(model.keys() & baseline.keys())
        raise UserError(
            f"the two models need the same prompts, at least one: {common} are common, {len(model) - common} "
            f"only the model's, {len(baseline) - common} only the baseline's."
        )
    for prompt in model:
        mine, other = model[prompt], baseline[prompt]
        if mode == "same-seed" and mine.keys() != other.keys():
            raise UserError(
                f"the seeds of {prompt!r} differ: {sorted(mine)} and {sorted(other)}. Generate both with the same "
                "seeds, or choose another mode."
            )
        if mode == "best-of-n" and len(mine) != len(other):
            raise UserError(
                f"best-of-n needs equally many images of {prompt!r}, got {len(mine)} and {len(other)}: the best of "
                "more is better by chance alone."
            )
        if not all(math.isfinite(score) for score in (*mine.values(), *other.values())):
            raise UserError(f"a score of {prompt!r} is not a finite number. Score it again, in float32 if it was not.")
