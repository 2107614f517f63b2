"""Objectives: pure functions of errors and margins, one row in, one row out. No statistic crosses rows.

    margin = -1/2 [(M_c - M_r) - (R_c - R_r)]         M policy, R reference: mean squared errors; c chosen, r rejected
    u      = beta margin

The factor 1/2 and the *mean* (not the sum) over c, h, w are the convention of the Diffusion-DPO authors' code; beta
means nothing without them.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from diffpo.types import Pair


def reward(policy: Tensor, reference: Tensor) -> Tensor:
    """Implicit reward of an image before beta, 1/2 (R - M), `[b]`: positive if the policy denoises it better."""
    return 0.5 * (reference - policy)


def margin(policy: Pair[Tensor], reference: Pair[Tensor]) -> Tensor:
    """How much more the policy has improved on the chosen than on the rejected image, `[b]`.

    Args:
        policy: `[b]` errors of the policy.
        reference: `[b]` errors of the reference.
    """
    return -0.5 * ((policy.chosen - policy.rejected) - (reference.chosen - reference.rejected))


def dpo(u: Tensor) -> Tensor:
    """-log sigmoid(u), `[b]` (Diffusion-DPO, arXiv:2311.12908, eq. 14). By hand: 0 -> log 2, log 3 -> log(4/3)."""
    return -F.logsigmoid(u)
