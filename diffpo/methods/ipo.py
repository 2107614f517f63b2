"""IPO (Azar et al. 2023, arXiv:2310.12036) for diffusion: the margin is pulled to 1 / (2 beta), not to infinity.

    loss = (margin - 1 / (2 beta))^2

Its gradient is about beta^2 times smaller than DPO's. AdamW does not mind the scale as long as gradients stay above
its epsilon: with beta in the thousands set `train.adam_epsilon` to 1e-15 or so. (The script in diffusers reads an
argument that does not exist here, and fails.)
"""

from dataclasses import dataclass

from torch import Tensor

from diffpo.core import objectives
from diffpo.core.block import Positive
from diffpo.methods.base import PairwiseMethod


@dataclass(frozen=True, kw_only=True)
class IPO(PairwiseMethod):
    """IPO: regression of the margin onto a target, so that clear pairs do not pull for ever."""

    beta: Positive = 2000.0
    """The margin to reach is 1 / (2 beta)."""

    def objective(self, margin: Tensor, preference: Tensor) -> Tensor:
        return objectives.ipo(margin, self.beta)
