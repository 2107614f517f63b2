"""Exact tests of counts, and p-values of many questions.

The sign test and McNemar's count one comparison per prompt. Several images of a prompt are not independent: they need
the sign-flip test of `stats`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact binomial p-value of "a win is as likely as a loss"; 1 where there is neither.

    By hand: 8 wins, 2 losses: 2 (1 + 10 + 45) / 1024 = 0.109.
    """
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


@dataclass(frozen=True, kw_only=True)
class PassFail:
    """Two models on the same prompts, each passed or failed."""

    both: int
    only_a: int
    only_b: int
    neither: int
    p_value: float
    """McNemar's, exact: the prompts on which the two agree say nothing (McNemar 1947)."""


def mcnemar(a: ArrayLike, b: ArrayLike) -> PassFail:
    """McNemar's exact test.

    Args:
        a: `[n]` whether one model passed each prompt.
        b: `[n]` whether the other did.

    Raises:
        ValueError: If the two are not equally many, or hold anything but passed and failed.
    """
    first, second = np.asarray(a), np.asarray(b)
    if first.ndim != 1 or first.shape != second.shape or not is_pass_fail(np.concatenate([first, second])):
        raise ValueError(f"need equally many passes and failures (1 and 0), got {first.shape} and {second.shape}")
    first, second = first.astype(bool), second.astype(bool)
    only_a, only_b = int((first & ~second).sum()), int((~first & second).sum())
    return PassFail(
        both=int((first & second).sum()),
        only_a=only_a,
        only_b=only_b,
        neither=int((~first & ~second).sum()),
        p_value=sign_test(only_a, only_b),
    )


def is_pass_fail(scores: ArrayLike) -> bool:
    """Whether all scores are 0 or 1."""
    return bool(np.isin(np.asarray(scores), (0, 1)).all())


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of an exploration: among what stays below q, a share of at most q is expected to be false.

    Sorted, p_(i) becomes the smallest of m p_(j) / j over j >= i (Benjamini & Hochberg 1995). For the questions that
    make one claim, use `stats.holm`.
    """
    from scipy.stats import false_discovery_control

    return [float(p) for p in false_discovery_control(p_values)] if len(p_values) else []
