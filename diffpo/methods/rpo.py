"""RPO (Miao et al. 2024, arXiv:2407.12164): a model learns a subject from a few photographs, and keeps to the prompt.

    loss = M_c - p log sigmoid(u) - (1 - p) log sigmoid(-u)
    u    = -beta/2 [ (M_c - R_c) - (M_r - R_r) ]

with M, R the mean squared errors of policy and reference, c a photograph of the subject with a plain prompt, r an image
that the base model made, with its own prompt, and p = sigmoid(reward(c) - reward(r)) by a harmonic mean of two rewards,
which the table brings along. It is a preset: DPO with `sft_weight=1` on the chosen side, soft labels and two captions.

The released code draws a hard label with probability p each time that a pair is met. Here the loss is the expectation
over that draw: the mean is the same, and the variance smaller. Its script for Stable Diffusion reads a beta and does
not use it, which is a beta of 1 there and of 2 here (no factor 1/2), and draws time and noise for each image by itself;
its script for SDXL uses beta, and one time and noise for both, as is done here.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from diffpo.core.block import NotNegative, Positive
from diffpo.methods.dpo import DPO


@dataclass(frozen=True, kw_only=True)
class RPO(DPO):
    """RPO: SFT on a subject's photographs, and soft Diffusion-DPO against images that the base made."""

    requires: ClassVar[frozenset[str]] = frozenset({"preference", "chosen_prompt", "rejected_prompt"})

    beta: Positive = 2.0
    """2 is the released code's 1, whose margin lacks the factor 1/2. So small a beta pulls weakly (docs/beta.md)."""
    sft_weight: NotNegative = 1.0
    """1 is released: the loss of DreamBooth (arXiv:2208.12242) on the photographs, without its prior images."""
    sft_side: Literal["better", "chosen"] = "chosen"
    """`chosen`: of the photographs alone, whatever the label says."""
