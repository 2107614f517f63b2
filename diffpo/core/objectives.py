"""Objectives: pure functions of errors and margins, one row in, one row out. No statistic crosses rows.

    margin = -1/2 [(M_c - M_r) - (R_c - R_r)]         M policy, R reference: mean squared errors; c chosen, r rejected
    u      = beta margin

The factor 1/2 and the *mean* (not the sum) over c, h, w are the convention of the Diffusion-DPO authors' code; beta
means nothing without them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from diffpo.core.types import Pair


def reward(policy: Tensor, reference: Tensor) -> Tensor:
    """Implicit reward of an image before beta, 1/2 (R - M), `[b]`: positive if the policy denoises it better."""
    return 0.5 * (reference - policy)


def margin(policy: Pair[Tensor], reference: Pair[Tensor]) -> Tensor:
    """How much more the policy's errors have fallen on the chosen than on the rejected image, `[b]` like the errors."""
    return -0.5 * ((policy.chosen - policy.rejected) - (reference.chosen - reference.rejected))


def dpo(u: Tensor) -> Tensor:
    """-log sigmoid(u), `[b]` (Diffusion-DPO, arXiv:2311.12908, eq. 14). By hand: 0 -> log 2, log 3 -> log(4/3)."""
    return -F.logsigmoid(u)


def cdpo(u: Tensor, label_smoothing: float) -> Tensor:
    """-(1 - e) log sigmoid(u) - e log sigmoid(-u), `[b]`: conservative DPO, labels being wrong with probability e.

    By hand: u = log 3, e = 1/4: 3/4 log(4/3) + 1/4 log 4 = 0.56234.
    """
    return (1 - label_smoothing) * dpo(u) + label_smoothing * dpo(-u)


def rdpo(u: Tensor, flip_rate: float) -> Tensor:
    """[(1 - e) dpo(u) - e dpo(-u)] / (1 - 2 e), `[b]` (robust DPO, arXiv:2403.00409): unbiased under flips of rate e.

    By hand: u = log 3, e = 1/4: (3/4 log(4/3) - 1/4 log 4) / (1/2) = -0.26162. May be negative.
    """
    return ((1 - flip_rate) * dpo(u) - flip_rate * dpo(-u)) / (1 - 2 * flip_rate)


def ipo(margin: Tensor, beta: float) -> Tensor:
    """(margin - 1 / (2 beta))^2, `[b]` (IPO, arXiv:2310.12036). By hand: margin 1, beta 1/4: (1 - 2)^2 = 1."""
    return (margin - 1 / (2 * beta)).square()


def hinge(u: Tensor) -> Tensor:
    """relu(1 - u), `[b]` (SLiC, arXiv:2305.10425). By hand: 0.25 -> 0.75, 2 -> 0."""
    return F.relu(1 - u)


def dmpo(u: Tensor, alpha: float) -> Tensor:
    """KL(sigmoid(u) || 1 - alpha) of two coins, `[b]` (DMPO, reverse KL).

    p log(p / (1 - alpha)) + (1 - p) log((1 - p) / alpha) with p = sigmoid(u). By hand: u = 0, alpha = 1/4:
    1/2 log(2/3) + 1/2 log 2 = 0.14384.
    """
    log_p, log_not_p = F.logsigmoid(u), F.logsigmoid(-u)
    return log_p.exp() * (log_p - math.log1p(-alpha)) + log_not_p.exp() * (log_not_p - math.log(alpha))


def kto(chosen: Tensor, rejected: Tensor, desirable_weight: float, undesirable_weight: float) -> Tensor:
    """Diffusion-KTO (arXiv:2404.04465) on a pair, `[b]`: the mean over its desirable and its undesirable image.

    With g_c and g_r the rewards `[b]` of the two, and k = max(0, their mean), without gradient:
    1/2 [w_d (1 - sigmoid(g_c - k)) + w_u (1 - sigmoid(k - g_r))]. By hand: g_c = log 3, g_r = -log 3, weights 1: k = 0,
    1/2 [1/4 + 1/4] = 1/4.
    """
    k = (0.5 * (chosen + rejected)).clamp(min=0).detach()
    return 0.5 * (desirable_weight * torch.sigmoid(k - chosen) + undesirable_weight * torch.sigmoid(rejected - k))


def mapo_link(error: Tensor, snr: float) -> Tensor:
    """MaPO's map from an error l to (0, 1], s l / (exp(s l) - 1), `[b]`. By hand: s l = log 2 -> log 2, 0 -> 1."""
    limits = torch.finfo(error.dtype)  # 0/0 at zero; beyond the upper end the link is zero, and its derivative inf/inf
    x = (snr * error).clamp(limits.tiny, 0.4 * math.log(limits.max))
    return x / torch.expm1(x)


def mapo_logit(chosen: Tensor, rejected: Tensor, snr: float, scale: float) -> Tensor:
    """Scale (link(M_c) - link(M_r)), `[b]` (MaPO, arXiv:2406.06424, released code): grows as the chosen error falls."""
    return scale * (mapo_link(chosen, snr) - mapo_link(rejected, snr))
