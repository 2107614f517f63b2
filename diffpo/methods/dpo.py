"""Diffusion-DPO (Wallace et al. 2023, arXiv:2311.12908), eq. 14 in the form of the authors' code.

    loss = -log sigmoid( -beta/2 [ (M_c - R_c) - (M_r - R_r) ] )

with M, R the mean squared errors of policy and reference on the same noisy latents, one t and one noise per pair.
"""

from dataclasses import dataclass

from torch import Tensor

from diffpo.core import objectives
from diffpo.core.block import Positive
from diffpo.methods.base import PairwiseMethod


@dataclass(frozen=True, kw_only=True)
class DPO(PairwiseMethod):
    """Diffusion-DPO."""

    beta: Positive = 2000.0
    """2000 for SD1.5 (paper), 5000 for SDXL; flow models use about 100."""

    def objective(self, margin: Tensor, preference: Tensor) -> Tensor:
        return objectives.dpo(self.beta * margin)
