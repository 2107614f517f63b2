"""What a comparison of this size could have found.

    mde = (z_{1 - alpha/2} + z_{power}) s / sqrt(n)

with s the standard deviation of the per-prompt values and n the number of prompts (Bloom 1995): a true effect of that
size is found in `power` of all repetitions. One image per prompt at a win rate of one half: s = 1/2, so 500 prompts
find 6.3 points, 1,632 find 3.5, 3,200 find 2.5.
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
        NaN where fewer than two values, or values that are all the same, tell nothing about their spread.
    """
    from scipy.special import ndtri

    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2 or np.ptp(values) == 0:
        return math.nan
    return float((ndtri(1 - alpha / 2) + ndtri(power)) * values.std(ddof=1) / math.sqrt(len(values)))
