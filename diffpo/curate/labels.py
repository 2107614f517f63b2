"""Soft labels: from two scores of a pair to P(chosen > rejected). Only numbers here; SmPO's recipe is the default.

    r = (score - low) / (high - low)
    preference = exp(r_chosen / T) / (exp(r_chosen / T) + exp(r_rejected / T)) = sigmoid((r_chosen - r_rejected) / T)

`low` and `high` make scorers of different scales alike. SmPO's released code has them as constants, the least and the
greatest raw cosine of PickScore on its data, and T = 1; any other scorer needs a look at the data set (`minmax`,
`quantiles`).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from diffpo.core.block import Block, Fraction, Positive
from diffpo.errors import UserError

OTHER = {"chosen": "rejected", "rejected": "chosen"}


@dataclass(frozen=True)
class Bounds:
    """Scores that become 0 and 1. Scores beyond them go beyond 0 and 1: clipping would make ties of them."""

    low: float
    high: float


RELEASED = Bounds(0.11543526500463486, 0.28201571106910706)
"""SmPO's released code, for the raw cosine of PickScore v1."""
UNCHANGED = Bounds(0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Labelling(Block):
    """How two scores become a label."""

    normalise: Literal["minmax", "quantiles", "released", "none"] = "minmax"
    """What becomes 0 and 1: the least and the greatest score of the training split (`minmax`), two quantiles of them
    (`quantiles`: a few outliers do not matter), the constants of SmPO's released code (`released`, for
    pickscore,scale=cosine), or nothing is changed (`none`: right for PickScore's logits with temperature 1, whose
    difference is the log odds that it was trained on)."""
    quantiles: tuple[Fraction, Fraction] = (0.01, 0.99)
    """Shares of the scores below what becomes 0 and 1, for `quantiles`."""
    temperature: Positive = 1.0
    """Divides the difference of the normalised scores; smaller means more certain."""
    order: Literal["human", "scorer"] = "human"
    """`human` keeps the order of the table, so that a preference below 0.5 says that the scorer disagrees; `scorer`
    puts the image with the higher score first, as SmPO's released code does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.quantiles
        if not low < high:
            raise UserError(
                f"quantiles are {low:g} and {high:g}; allowed is 0 <= first < second <= 1, such as 0.01 0.99."
            )

    def check_scorer(self, provenance: Mapping[str, Any]) -> None:
        """Check that the constants suit the scorer."""
        scorer, scale = provenance.get("scorer"), provenance.get("scale")
        if self.normalise == "released" and (scorer, scale) != ("pickscore", "cosine"):
            raise UserError(
                "normalise=released takes the constants of SmPO's released code, which hold for PickScore's raw "
                f"cosine; this is {scorer}, scale {scale}. Use --scorer pickscore,scale=cosine, or --normalise minmax."
            )

    @property
    def recipe(self) -> dict[str, Any]:
        """All that decides a label besides the scores, as plain JSON values."""
        values = dataclasses.asdict(self)
        return values if self.normalise == "quantiles" else {k: v for k, v in values.items() if k != "quantiles"}

    def find_bounds(self, scores: np.ndarray) -> Bounds:
        """Find what becomes 0 and 1 by the scores `[n 2]` of the training split."""
        if self.normalise == "none":
            return UNCHANGED
        if self.normalise == "released":
            return RELEASED
        shares = (0.0, 1.0) if self.normalise == "minmax" else self.quantiles
        low, high = (float(score) for score in np.quantile(scores, shares))
        if low == high:
            raise UserError(
                f"normalise={self.normalise} finds nothing to spread out: both ends of the scores are {low:g}. "
                "Use --normalise minmax or none, or another scorer."
            )
        return Bounds(low, high)


def preferences(scores: np.ndarray, bounds: Bounds, temperature: Positive) -> np.ndarray:
    """`[n]` P(chosen > rejected) of `[n 2]` scores, chosen first; exactly 0.5 where they are equal."""
    from scipy.special import expit

    r = (scores.astype(np.float64) - bounds.low) / (bounds.high - bounds.low)
    return expit((r[:, 0] - r[:, 1]) / temperature)


def other_side(name: str) -> str:
    """`rejected_seed` for `chosen_seed`, and so on; a column that belongs to no side is its own counterpart."""
    side, sign, rest = name.partition("_")
    return OTHER.get(side, side) + sign + rest
