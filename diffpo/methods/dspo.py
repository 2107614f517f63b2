"""DSPO (Zhu et al. 2025, ICLR, OpenReview xyfb9HHvMe): regression onto the preferred score, as in the SD1.5 code.

    loss = mean( ( (prediction - target) - beta (1 - sigmoid(u)) q )^2 )    on the chosen image
    q    = prediction - the reference's prediction        u = beta margin

The rejected image enters through u alone; gradients flow through it, as released. The SDXL code is another rule, with
a threshold on a mean over the batch; it is left out, since a row would depend on its neighbours. beta is small here,
0.001 to 0.05: then sigmoid(u) is about one half, and the loss close to SFT.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffpo.core.block import Positive
from diffpo.core.process import expand
from diffpo.core.types import Denoised, Pair
from diffpo.methods.base import NO_REFERENCE, Answers, TwoSidedMethod


@dataclass(frozen=True, kw_only=True)
class DSPO(TwoSidedMethod):
    """DSPO: learn the chosen image's score, corrected by how far the pair is from being preferred."""

    beta: Positive = 0.01
    """0.001 to 0.05 for SD1.5; larger ones outweigh the regression."""

    @property
    def asks_reference_for(self) -> str | None:
        return "its loss needs the reference's predictions, not only their errors"

    def compare(self, answers: Answers) -> Tensor:
        assert answers.reference is not None, NO_REFERENCE
        policy, reference = answers.policy.chosen, answers.reference.chosen
        assert isinstance(reference, Denoised), "a config that keeps errors alone was refused"
        dtype = torch.promote_types(policy.prediction.dtype, torch.float32)  # raised once: gradients add up in it
        row = answers.terms.row.to(policy.prediction.device)
        prediction, target, other = (
            x.to(dtype)[row] for x in (policy.prediction, policy.noised.target, reference.prediction)
        )
        missing = 1 - torch.sigmoid(self.beta * answers.margin)
        error = (prediction - target - self.beta * expand(missing, prediction) * (prediction - other)).square()
        return (answers.terms.weight.to(error) * error.mean((1, 3, 4))).sum(1)

    def rewards(self, answers: Answers) -> Pair[Tensor]:
        return answers.reward.map(lambda reward: self.beta * reward)
