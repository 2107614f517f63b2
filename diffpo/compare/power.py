"""What a comparison of this size could have found.

    mde = (t_{1 - alpha/2} + t_{power}) s / sqrt(n)

with s the standard deviation of the per-prompt values, n the number of prompts and t of n - 1 degrees of freedom (Bloom
1995): a true effect of that size is found in `power` of all repetitions. One image per prompt at a win rate of a half:
s = 1/2, so 500 prompts find 6.3 points, 1,632 find 3.5, 3,200 find 2.5. The tests here count patterns of signs; of five
prompts there are 32, and the rarest have p = 2 / 32 = 0.06: five prompts find nothing at 5 %, however large it is.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

ALPHA = 0.05
POWER = 0.8


def minimum_detectable_effect(values: ArrayLike, *, alpha: float = ALPHA, power: float = POWER) -> float:
    """Smallest true mean that a two-sided test of these values would find, in their unit.

    Args:
        values: `[n]`, one per prompt.
        alpha: Level of the test.
        power: Share of repetitions in which the effect should be found.

    Returns:
        NaN where values that are all the same tell nothing about their spread, or are too few to find anything.
    """
    from scipy.special import stdtrit

    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    if least_p_value(n) > alpha or np.ptp(values) == 0:
        return math.nan
    return float((stdtrit(n - 1, 1 - alpha / 2) + stdtrit(n - 1, power)) * values.std(ddof=1) / math.sqrt(n))


def least_p_value(n: int) -> float:
    """The smallest two-sided p-value that signs of `n` prompts can give: 2 of 2^n patterns."""
    return 2.0 ** (1 - n)
