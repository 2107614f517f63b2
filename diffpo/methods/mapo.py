"""MaPO (Hong et al. 2024, arXiv:2406.06424): margin-aware preference optimisation without a reference.

    loss = M_c - weight log sigmoid( scale (link(M_c) - link(M_r)) )        link(l) = s l / (exp(s l) - 1)

in the form of the released code. The paper raises the link to the power beta and weighs the second term by 1 / beta;
the code has no power, multiplies by the number of training times, and weighs by 0.1.
"""

from dataclasses import dataclass

from torch import Tensor

from diffpo.core import objectives
from diffpo.core.block import Positive
from diffpo.core.types import Pair
from diffpo.methods.base import Answers, TwoSidedMethod


@dataclass(frozen=True, kw_only=True)
class MaPO(TwoSidedMethod):
    """MaPO: denoise the chosen image well, and better than the rejected one; nothing is kept frozen."""

    weight: Positive = 0.1
    """Weight of the comparison beside the chosen image's error, the released `beta_mapo`."""
    snr: Positive = 0.5
    """s of the link, the released `snr_value`."""
    scale: Positive = 1000.0
    """What multiplies the difference of the links: the number of training times, as released."""

    @property
    def needs_reference(self) -> bool:
        """Only where a reference is asked to invert the images."""
        return self.inversion is not None and self.inversion.invert_with == "reference"

    def compare(self, answers: Answers) -> Tensor:
        return answers.error.chosen + self.weight * objectives.dpo(self.logit(answers))

    def rewards(self, answers: Answers) -> Pair[Tensor]:
        return answers.error.map(lambda error: self.scale * objectives.mapo_link(error, self.snr))

    def logit(self, answers: Answers) -> Tensor:
        return objectives.mapo_logit(answers.error.chosen, answers.error.rejected, self.snr, self.scale)
