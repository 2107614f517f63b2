"""SmPO-Diffusion (Lu et al. 2025, arXiv:2506.02698): smoothed preferences on ReNoise-inverted images.

    loss = -log sigmoid( gamma (2 p - 1) u )        u = beta margin, p = P(chosen > rejected)

p scales beta pair by pair, inside the sigmoid: a pair of equal images gives log 2 and no gradient. This is not label
smoothing (`cdpo`). The released code knows p from PickScore alone, through a softmax of normalised scores (`diffpo
data score ... --normalise released`), and inverts with one ReNoise correction per step where the paper describes a
single one at the end.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from diffpo.core import objectives
from diffpo.core.block import Positive
from diffpo.core.inversion import Inversion
from diffpo.methods.base import PairwiseMethod


@dataclass(frozen=True, kw_only=True)
class SmPO(PairwiseMethod):
    """SmPO: DPO whose beta follows how clear each pair's preference is, on inverted images."""

    requires: ClassVar[frozenset[str]] = frozenset({"preference"})

    beta: Positive = 2000.0
    """2000 for SD1.5, 5000 for SDXL, as released."""
    gamma: Positive = 10.0
    """Sum of the two exponents that mix chosen and rejected; with p = 0.55 the factor is 1. 10 is released."""
    inversion: Inversion | None = field(default_factory=lambda: Inversion(steps=5, renoise=1))
    """5 steps for SD1.5, 10 for SDXL, each with one ReNoise correction."""

    def objective(self, margin: Tensor, preference: Tensor) -> Tensor:
        """-log sigmoid(gamma (2 p - 1) beta margin), `[b]`: the same whichever side is called chosen."""
        factor = self.gamma * (2 * preference.to(margin) - 1)
        return objectives.dpo(factor * self.beta * margin)
