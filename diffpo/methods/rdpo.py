"""Robust DPO (Chowdhury et al. 2024, arXiv:2403.00409): DPO that flipped labels do not bias.

loss = [ -(1 - e) log sigmoid(u) + e log sigmoid(-u) ] / (1 - 2 e)        u = beta margin
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from diffpo.core import objectives
from diffpo.core.block import Range
from diffpo.methods.base import PairwiseMethod


@dataclass(frozen=True, kw_only=True)
class RDPO(PairwiseMethod):
    """Robust DPO: an unbiased loss where a known share of the labels is flipped. It may be negative."""

    flip_rate: Annotated[float, Range(least=0, below=0.5)] = 0.1
    """Share e of flipped labels, below 1/2; 0 is DPO."""

    def objective(self, margin: Tensor, preference: Tensor) -> Tensor:
        return objectives.rdpo(self.beta * margin, self.flip_rate)
