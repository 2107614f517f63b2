"""Tests of "no difference", and p-values of many questions.

The unit of every test is the prompt: images of one prompt share its difficulty, so they are no independent comparisons.
The sign test, and McNemar's, count one comparison per prompt; means of several go through the sign-flip test.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_CELLS = 1 << 22  # random signs held at a time
_EXACT = 14  # up to so many prompts all sign patterns are tried


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact binomial p-value of "a win is as likely as a loss"; 1 where there is neither.

    Of scores that are passes and failures, one per prompt, this is McNemar's exact test (McNemar 1947): prompts on
    which the two models agree are ties, and ties say nothing. By hand: 8 wins and 2 losses give 2 (1 + 10 + 45) / 1024.
    """
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def is_pass_fail(scores: ArrayLike) -> bool:
    """Whether all scores are 0 or 1."""
    return bool(np.isin(np.asarray(scores), (0, 1)).all())


def sign_flip_p_value(values: NDArray[np.float64], *, permutations: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of "the values are symmetric about 0", from the mean under random signs.

    With up to 14 values all patterns are tried and p is exact; else p = (1 + number as extreme) / (1 + permutations),
    which is never 0. scipy's `permutation_test` finds the same, by sorting random numbers: it takes ten times as long.

    Args:
        values: `[n]`, one per prompt.
        permutations: Number of random sign patterns.
        seed: Of the patterns.
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


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of several questions asked at once, so that all of them together err at the stated level.

    Sorted, p_(i) becomes the largest of (m - j + 1) p_(j) over j <= i, at most 1 (Holm 1979; scipy has none). By hand:
    0.01, 0.04, 0.03 become 0.03, 0.06, 0.06.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, (len(p_values) - rank) * p_values[i])
        adjusted[i] = min(1.0, largest)
    return adjusted


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of an exploration: among what stays below q, a share of at most q is expected to be false.

    Sorted, p_(i) becomes the smallest of m p_(j) / j over j >= i (Benjamini & Hochberg 1995). Questions that make one
    claim go through `holm`.
    """
    from scipy.stats import false_discovery_control

    return [float(p) for p in false_discovery_control(p_values)] if len(p_values) else []
