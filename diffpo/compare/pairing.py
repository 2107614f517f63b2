"""Which image of one model is compared with which of the other: from `scores[model, prompt, seed]` to pairs.

    same-seed        the images of the same prompt and seed: the same initial noise      the default
    all-pairs        every image of a prompt with every one of the other model
    median-image     per prompt, the image of median score of each model
    best-of-n        per prompt, the best image of each model
    mean-over-seeds  per prompt, the mean score of each model

Which image is the median or the best one may be chosen by another scorer than the one that then judges it.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from diffpo.errors import UserError
from diffpo.media.folder import Media

Mode = Literal["same-seed", "all-pairs", "median-image", "best-of-n", "mean-over-seeds"]
MODES: tuple[Mode, ...] = get_args(Mode)
CHOOSING: tuple[Mode, ...] = ("median-image", "best-of-n")
WHAT: dict[Mode, str] = {
    "same-seed": "comparisons on the same prompts and seeds",
    "all-pairs": "comparisons of all images of the same prompts",
    "median-image": "comparisons of the median images of a prompt",
    "best-of-n": "comparisons of the best images of a prompt",
    "mean-over-seeds": "comparisons of the mean scores of a prompt",
}
"""What is counted."""
TIE_TOLERANCE = 1e-6
"""Relative to the largest score: what rounding in float32 makes of the same image is no win."""

Key = tuple[str, int]
"""Which image of a model: its prompt and its seed."""

Scores = Mapping[str, Mapping[int, float]]
"""One model's scores by one scorer: prompt -> seed -> score."""


M = TypeVar("M", bound=Media)


def by_image(of_models: Sequence[Sequence[M]]) -> list[dict[Key, M]]:
    """Each model's images by prompt and seed; where any seed is unknown, all by prompt and place among its images."""
    in_order = any(item.seed is None for items in of_models for item in items)
    found = []
    for items in of_models:
        images, count = dict[Key, M](), Counter[str]()
        for item in items:
            images[item.prompt, count[item.prompt] if in_order else item.seed] = item
            count[item.prompt] += 1
        found.append(images)
    return found


@dataclass(frozen=True)
class PairedScores:
    """Scores side by side, prompt after prompt."""

    model: NDArray[np.float64]
    """`[n]`"""
    baseline: NDArray[np.float64]
    """`[n]`"""
    prompts: tuple[str, ...]
    """`[n]`"""

    def only(self, prompts: Iterable[str]) -> Self:
        """Those of some prompts."""
        wanted = set(prompts)
        rows = [i for i, prompt in enumerate(self.prompts) if prompt in wanted]
        kept = tuple(self.prompts[i] for i in rows)
        return replace(self, model=self.model[rows], baseline=self.baseline[rows], prompts=kept)

    @property
    def tie_tolerance(self) -> float:
        """How near two scores are a tie."""
        return TIE_TOLERANCE * float(np.abs([self.model, self.baseline]).max())


def pair_values(
    model: Scores, baseline: Scores, mode: Mode = "same-seed", *, chosen_by: tuple[Scores, Scores] | None = None
) -> PairedScores:
    """Pair two models' scores of the same prompts, in alphabetical order; see the top of this file.

    `same-seed` needs the same seeds, `best-of-n` as many per prompt: the best of more images is better. Of an even
    number of images the median one is the lower of the middle two. `chosen_by`, of model and baseline, chooses it.
    """
    if not model or model.keys() != baseline.keys():
        common = len(model.keys() & baseline.keys())
        raise UserError(
            f"the two models need the same prompts, at least one: {common} are common, {len(model) - common} "
            f"only the model's, {len(baseline) - common} only the baseline's."
        )
    assert mode != "same-seed" or all(model[prompt].keys() == baseline[prompt].keys() for prompt in model)
    first, second = chosen_by or (model, baseline)
    a, b, prompts = [], [], []
    for prompt in sorted(model):  # resampling must not depend on the order of rows
        if mode == "best-of-n" and len(model[prompt]) != len(baseline[prompt]):
            raise UserError(
                f"best-of-n needs equally many images of {prompt!r}, got {len(model[prompt])} and "
                f"{len(baseline[prompt])}: the best of more is better by chance alone."
            )
        if not all(map(math.isfinite, (*model[prompt].values(), *baseline[prompt].values()))):
            raise UserError(f"a score of {prompt!r} is not a finite number. Score it again, in float32 if it was not.")
        mine = _values_of_prompt(model[prompt], first.get(prompt, {}), mode, prompt)
        other = _values_of_prompt(baseline[prompt], second.get(prompt, {}), mode, prompt)
        if mode == "all-pairs":
            mine, other = [x for x in mine for _ in other], other * len(mine)
        a += mine
        b += other
        prompts += [prompt] * len(mine)
    return PairedScores(np.array(a), np.array(b), tuple(prompts))


def _values_of_prompt(
    scores: Mapping[int, float], choices: Mapping[int, float], mode: Mode, prompt: str
) -> list[float]:
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
