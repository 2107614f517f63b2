"""The hinge loss of SLiC (Zhao et al. 2023, arXiv:2305.10425) on diffusion margins: clear pairs are left alone.

loss = relu(1 - u)        u = beta margin
"""

from dataclasses import dataclass

from torch import Tensor

from diffpo.core import objectives
from diffpo.methods.base import PairwiseMethod


@dataclass(frozen=True, kw_only=True)
class Hinge(PairwiseMethod):
    """Hinge: a constant pull until u reaches 1, then none."""

    def objective(self, margin: Tensor, preference: Tensor) -> Tensor:
        return objectives.hinge(self.beta * margin)
