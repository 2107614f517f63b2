"""Diffusion-KTO (Li et al. 2024, arXiv:2404.04465) on pairs: each is one desirable and one undesirable image.

    g = beta/2 (R - M) of each image        k = max(0, mean of the pair's two g), without gradient
    loss = 1/2 [ w_d (1 - sigmoid(g_c - k)) + w_u (1 - sigmoid(k - g_r)) ]

While k > 0, g_c - k = k - g_r = (g_c - g_r) / 2, so that the loss is (w_d + w_u) / 2 (1 - sigmoid(beta margin / 2)), a
function of the margin alone. Each image is judged by itself only where the policy has lost on the pair, and k is 0.

Two deviations from the released code. Its reference point k is a mean over the batch of all processes; here it is the
pair's own, so that no row depends on the others. Its g has no factor 1/2: its beta is half of ours. It learns from
unpaired images, drawing desirable ones with probability 0.8: `desirable_weight` 1.6 and `undesirable_weight` 0.4
weigh alike.
"""

from dataclasses import dataclass

from torch import Tensor

from diffpo.core import objectives
from diffpo.core.block import NotNegative, Positive
from diffpo.core.types import Pair
from diffpo.methods.base import Answers, TwoSidedMethod


@dataclass(frozen=True, kw_only=True)
class KTO(TwoSidedMethod):
    """Diffusion-KTO: each image is compared with what the policy has gained on the pair, if that is positive."""

    beta: Positive = 2000.0
    """Twice the released code's: its default is 1000, and the paper has 5000."""
    desirable_weight: NotNegative = 1.0
    """Weight of the chosen image's term."""
    undesirable_weight: NotNegative = 1.0
    """Weight of the rejected image's term."""

    def compare(self, answers: Answers) -> Tensor:
        rewards = self.rewards(answers)
        return objectives.kto(rewards.chosen, rewards.rejected, self.desirable_weight, self.undesirable_weight)

    def rewards(self, answers: Answers) -> Pair[Tensor]:
        return answers.reward.map(lambda reward: self.beta * reward)
