"""Conservative DPO (Mitchell 2023, a note on DPO with noisy preferences): DPO with smoothed labels.

loss = -(1 - e) log sigmoid(u) - e log sigmoid(-u)        u = beta margin
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from diffpo.core import objectives
from diffpo.core.block import Range
from diffpo.methods.base import PairwiseMethod


@dataclass(frozen=True, kw_only=True)
class CDPO(PairwiseMethod):
    """Conservative DPO: labels are wrong with a known probability, and the policy should stay unsure."""

    label_smoothing: Annotated[float, Range(least=0, below=0.5)] = 0.1
    """Probability e that a label is wrong, below 1/2; 0 is DPO."""

    def objective(self, margin: Tensor, preference: Tensor) -> Tensor:
        return objectives.cdpo(self.beta * margin, self.label_smoothing)
