"""Statistics of paired scores.

The unit is the prompt: images of one prompt share its difficulty, so together they are one observation.

    v_i   mean over the seeds of prompt i of [a > b] + [a = b] / 2, or of a - b
    v     mean of v_i over prompts                                 the estimate
    ci    quantiles of v over resamples of the *prompts*           cluster bootstrap
    p     how often random signs of v_i - v_0 move v as far        sign-flip permutation test

with v_0 = 1/2, or 0 for differences. Where every prompt has one comparison, the sign test counts the same patterns
exactly. Bootstrap: Efron & Tibshirani 1993, chapters 13 and 14. Counting images as if they were independent makes
intervals too narrow, by a factor of 1.45 for 500 prompts x 5 seeds whose scores vary as much between prompts as within.
"""

import dataclasses
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffpo.compare.p_values import minimum_detectable_effect, sign_flip_p_value, sign_test
from diffpo.errors import UserError

_CELLS = 1 << 22  # random numbers held at a time


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """How intervals and p-values are drawn."""

    level: float = 0.95
    """Of the intervals."""
    resamples: int = 10_000
    """Of the bootstrap, and of the permutation test."""
    interval: Literal["percentile", "bca"] = "percentile"
    """How the bootstrap's distribution becomes an interval: `percentile`, with room for few values, or `bca`
    (bias-corrected and accelerated, Efron 1987)."""
    seed: int = 0
    """Of both."""

    def __post_init__(self):
        """Check the values; a `UserError` says which are allowed."""
        if not 0 < self.level < 1 or self.resamples < 1:
            raise UserError(f"level is between 0 and 1, resamples at least 1; got {self.level:g} and {self.resamples}.")


USUAL = Resampling()


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An estimate with its interval."""

    estimate: float
    ci_low: float
    """NaN where one prompt is all there is."""
    ci_high: float
    p_value: float
    """Two-sided, of no difference."""
    n_prompts: int
    n_pairs: int
    detectable: float = math.nan
    """The true effect (from one half, or from 0) that 80 % of such comparisons would find at 5 %; NaN: unknown."""
    test: Literal["sign-flip", "binomial", "mcnemar"] = "sign-flip"
    """Where the p-value comes from."""


@dataclass(frozen=True, kw_only=True)
class WinRate(Estimate):
    """How often a beats b. `estimate` is a mean of per-prompt means, ties count half; the counts are of pairs."""

    wins: int
    ties: int
    losses: int

    @property
    def standing(self) -> str:
        """`better`, `worse` or `unclear`: on which side of one half the interval lies."""
        return "better" if self.ci_low > 0.5 else "worse" if self.ci_high < 0.5 else "unclear"

    def flipped(self) -> Self:
        """How often b beats a."""
        low, high = 1 - self.ci_high, 1 - self.ci_low
        turned = {"estimate": 1 - self.estimate, "wins": self.losses, "losses": self.wins}
        return dataclasses.replace(self, ci_low=low, ci_high=high, **turned)


def win_rate(
    a: ArrayLike,
    b: ArrayLike,
    prompt_ids: Sequence[Hashable],
    *,
    tie_tolerance: float = 0.0,
    resampling: Resampling = USUAL,
) -> WinRate:
    """Win rate of a over b in paired comparisons.

    Args:
        a: `[n]` scores of one model.
        b: `[n]` scores of the other, for the same prompts and seeds.
        prompt_ids: `[n]` which pairs belong together.
        tie_tolerance: Scores that differ by no more are a tie.
        resampling: How the interval and the p-value are drawn.
    """
    a, b = _paired(a, b, prompt_ids)
    won = shares_won(a, b, tie_tolerance)
    values = per_prompt_means(won, prompt_ids)
    wins, losses = int((won == 1).sum()), int((won == 0).sum())
    if len(values) == len(a):  # one comparison per prompt: they are independent, and can be counted
        pass_fail = wins + losses < len(a) and np.isin([a, b], (0, 1)).all()
        p, test = sign_test(wins, losses), "mcnemar" if pass_fail else "binomial"
    else:
        p = sign_flip_p_value(values - 0.5, permutations=resampling.resamples, seed=resampling.seed)
        test = "sign-flip"
    counts = {"wins": wins, "ties": len(a) - wins - losses, "losses": losses}
    return WinRate(**measures(values, len(a), share_interval(values, resampling)), p_value=p, test=test, **counts)


def mean_difference(
    a: ArrayLike, b: ArrayLike, prompt_ids: Sequence[Hashable], *, resampling: Resampling = USUAL
) -> Estimate:
    """Mean of a - b over prompts, with the same resamples as `win_rate`. Arguments as there."""
    a, b = _paired(a, b, prompt_ids)
    values = per_prompt_means(a - b, prompt_ids)
    p = sign_flip_p_value(values, permutations=resampling.resamples, seed=resampling.seed)
    return Estimate(**measures(values, len(a), bootstrap_interval(values, resampling)), p_value=p)


def measures(values: NDArray[np.float64], n_pairs: int, interval: tuple[float, float]) -> dict[str, Any]:
    """What an `Estimate` says of the mean of values, `[n]`, one per prompt, beside its test."""
    low, high = map(float, interval)
    counts = {"n_prompts": len(values), "n_pairs": n_pairs, "detectable": minimum_detectable_effect(values)}
    return {"estimate": float(values.mean()), "ci_low": low, "ci_high": high, **counts}


def shares_won(a: NDArray[np.float64], b: NDArray[np.float64], tie_tolerance: float = 0.0) -> NDArray[np.float64]:
    """What a gets of each comparison with b, `[n]`: 1 for a win, 1/2 for a tie, 0 for a loss."""
    difference = a - b
    return 0.5 + 0.5 * (difference > tie_tolerance) - 0.5 * (difference < -tie_tolerance)


def numbered(ids: Iterable[Hashable]) -> NDArray[np.intp]:
    """A number in the place of each id, `[n]`, in the order in which they first appear."""
    index: dict[Hashable, int] = {}
    return np.array([index.setdefault(item, len(index)) for item in ids], dtype=np.intp)


def per_prompt_means(values: ArrayLike, prompt_ids: Iterable[Hashable]) -> NDArray[np.float64]:
    """Mean of each prompt's values, `[prompts]`, in the order in which the prompts first appear."""
    groups = numbered(prompt_ids)
    return np.bincount(groups, weights=np.asarray(values, dtype=np.float64)) / np.bincount(groups)


def bootstrap_interval(values: NDArray[np.float64], resampling: Resampling = USUAL) -> tuple[float, float]:
    """Interval of the mean of independent values, `[n]`, one per prompt, by resampling them; NaN for a single value.

    The quantiles of `percentile` are Phi(+-sqrt(n / (n - 1)) t), t of n - 1 degrees of freedom (Hesterberg 2015,
    section 4.1.1). The plain ones, which are all that scipy has, are too near for few values: resampling divides by n,
    and takes the spread that it sees for the true one. For 10 values 95 % become 98.3 %, for 200 95.2 %.
    """
    from scipy.special import ndtr, stdtrit
    from scipy.stats import bootstrap

    n = len(values)
    if n < 2:
        return math.nan, math.nan
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=resampling.resamples,
        confidence_level=resampling.level,
        method=resampling.interval,
        vectorized=True,
        batch=max(1, _CELLS // n),
        rng=np.random.default_rng([resampling.seed, 0]),
    )
    low, high = found.confidence_interval
    if resampling.interval == "percentile":
        tail = ndtr(math.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 - resampling.level) / 2))
        low, high = np.quantile(found.bootstrap_distribution, [tail, 1 - tail])
    return float(low), float(high)


def share_interval(values: NDArray[np.float64], resampling: Resampling = USUAL) -> tuple[float, float]:
    """`bootstrap_interval` of shares; where all are alike (all won, all tied), resampling knows no spread."""
    if np.ptp(values) == 0:
        return constant_interval(float(values[0]), len(values), resampling.level)
    return bootstrap_interval(values, resampling)


def constant_interval(value: float, n: int, level: float) -> tuple[float, float]:
    """Interval of the mean of values in [0, 1] of which n were drawn, all of them `value`.

    At most q = 1 - (alpha/2)^(1/n) of what they were drawn from is anything else: 0 at the least, 1 at the most. For
    n wins this is the exact interval of Clopper and Pearson, (alpha/2)^(1/n) to 1.
    """
    same = ((1 - level) / 2) ** (1 / n)
    return value * same, 1 - (1 - value) * same


def _paired(
    a: ArrayLike, b: ArrayLike, prompt_ids: Sequence[Hashable]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or len(first) != len(prompt_ids) or not len(first):
        raise ValueError(
            f"need equally many scores and prompts, at least one; got {first.shape}, {second.shape}, {len(prompt_ids)}"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("scores must be finite numbers")
    return first, second
