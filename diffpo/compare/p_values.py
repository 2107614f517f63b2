"""Tests of "no difference", what they could have found, and p-values of many questions.

The unit of every test is the prompt: images of one prompt share its difficulty, so they are no independent comparisons.
The sign test, and McNemar's, count one comparison per prompt; means of several go through the sign-flip test. Both
count patterns of signs; of five prompts there are 32, and the rarest have p = 2 / 32 = 0.06: five prompts find nothing
at 5 %, however large it is.

    mde = (t_{1 - alpha/2} + t_{power}) s / sqrt(n)

with s the standard deviation of the per-prompt values, n the number of prompts and t of n - 1 degrees of freedom (Bloom
1995): a true effect of that size is found in `POWER` of all repetitions. One image per prompt at a win rate of a half:
s = 1/2, so 500 prompts find 6.3 points, 1,632 find 3.5, 3,200 find 2.5.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

ALPHA = 0.05
POWER = 0.8
_CELLS = 1 << 22  # random signs held at a time
_EXACT = 14  # up to so many prompts all sign patterns are tried


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact binomial p-value of "a win is as likely as a loss"; 1 where there is neither.

    Of scores that are passes and failures, one per prompt, this is McNemar's exact test (McNemar 1947): prompts on
    which the two models agree are ties, and ties say nothing. By hand: 8 wins and 2 losses give 2 (1 + 10 + 45) / 1024.
    """
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def sign_flip_p_value(values: NDArray[np.float64], *, permutations: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of "the values `[n]`, one per prompt, are symmetric about 0": their mean under random signs.

    With up to 14 values all patterns are tried and p is exact; else p = (1 + number as extreme) / (1 + permutations),
    which is never 0. scipy's `permutation_test` finds the same, by sorting random numbers: it takes ten times as long.
    """
    n, observed = len(values), abs(values.sum())
    threshold = observed * (1 - 1e-12) - 1e-15  # sums in another order may differ in the last bit
    if n <= _EXACT:
        patterns = (np.arange(1 << n)[:, None] >> np.arange(n)) & 1
        return float((np.abs((2 * patterns - 1) @ values) >= threshold).mean())
    generator, extreme = np.random.default_rng([seed, 1]), 0
    for start in range(0, permutations, rows := max(1, _CELLS // n)):
        signs = 2 * generator.integers(0, 2, size=(min(rows, permutations - start), n), dtype=np.int8) - 1
        extreme += int((np.abs(signs @ values) >= threshold).sum())
    return (1 + extreme) / (1 + permutations)


def least_p_value(n: int) -> float:
    """The smallest two-sided p-value that signs of `n` prompts can give: 2 of 2^n patterns."""
    return 2.0 ** (1 - n)


def minimum_detectable_effect(values: ArrayLike) -> float:
    """Smallest true mean that a two-sided test of these values, `[n]`, one per prompt, would find, in their unit.

    NaN where values that are all the same tell nothing about their spread, or are too few to find anything.
    """
    from scipy.special import stdtrit

    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    if least_p_value(n) > ALPHA or np.ptp(values) == 0:
        return math.nan
    return float((stdtrit(n - 1, 1 - ALPHA / 2) + stdtrit(n - 1, POWER)) * values.std(ddof=1) / math.sqrt(n))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of several questions asked at once, so that all of them together err at the stated level.

    Sorted, p_(i) becomes the largest of (m - j + 1) p_(j) over j <= i, at most 1 (Holm 1979; scipy has none). By hand:
    0.01, 0.04, 0.03 become 0.03, 0.06, 0.06.
    """
    order = np.argsort(p_values, kind="stable")
    raised = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(raised).clip(max=1)
    return adjusted.tolist()


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of an exploration: among what stays below q, a share of at most q is expected to be false.

    Sorted, p_(i) becomes the smallest of m p_(j) / j over j >= i (Benjamini & Hochberg 1995). Questions that make one
    claim go through `holm`.
    """
    from scipy.stats import false_discovery_control

    return [float(p) for p in false_discovery_control(p_values)] if len(p_values) else []
