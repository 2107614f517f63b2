"""DMPO, divergence minimisation preference optimisation, as in the Diffusion-SDPO authors' code (arXiv:2511.03317).

loss = KL( sigmoid(u) || 1 - alpha )        u = beta margin; a reverse KL of two coins
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from diffpo.core import objectives
from diffpo.core.block import Positive, Range
from diffpo.methods.base import PairwiseMethod


@dataclass(frozen=True, kw_only=True)
class DMPO(PairwiseMethod):
    """DMPO: the policy's preference is pulled to 1 - alpha by a reverse KL."""

    beta: Positive = 2000.0
    """2000 for SD1.5, 6000 for SDXL."""
    alpha: Annotated[float, Range(above=0, below=0.5)] = 0.01
    """Probability that is left to the rejected image, in (0, 1/2)."""

    def objective(self, margin: Tensor, preference: Tensor) -> Tensor:
        return objectives.dmpo(self.beta * margin, self.alpha)
