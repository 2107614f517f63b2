"""Diffusion-KTO by hand: each image against the pair's own reference point."""

from __future__ import annotations

import math

import pytest
import torch
from hand import LATENT, answers, gradients, judge

from diffpo.methods import METHODS


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_loss_by_hand():
    """beta 2, errors 1, 4 | 2.25, 1: g_c = 1.25, g_r = -3; their mean is negative, so k = 0.

    1/2 [1.6 sigmoid(-1.25) + 0.4 sigmoid(-3)].
    """
    method = METHODS["kto"](beta=2.0, desirable_weight=1.6, undesirable_weight=0.4)
    output = judge(method, answers(1, 2), answers(1.5, 1))
    assert output.loss.item() == pytest.approx(0.5 * (1.6 * sigmoid(-1.25) + 0.4 * sigmoid(-3)), rel=1e-13)
    rewards = [output.metrics[f"rewards/{name}"].item() for name in ("chosen", "rejected", "margins", "accuracies")]
    assert rewards == pytest.approx([1.25, -3, 4.25, 1])


def test_the_reference_point_is_detached():
    """Both images improved alike: g = 1.25 each, so k = 1.25; weights 2 and 4: the loss is 1/2 [2/2 + 4/2] = 3/2.

    d loss / d g_c = -2/2 * 1/4; d g / d M = -beta/2 = -1; d M / d p = 2 * 1 / 16: together 1/32. The rejected one's is
    -1/16. With a gradient through k both would have the mean, 3/64.
    """
    method = METHODS["kto"](beta=2.0, desirable_weight=2, undesirable_weight=4)
    policy, reference = answers(1, 1), answers(1.5, 1.5)
    assert judge(method, policy, reference).loss.item() == pytest.approx(1.5)
    by = gradients(method, policy, reference)
    torch.testing.assert_close(by.chosen, torch.full(LATENT, 1 / 32, dtype=torch.float64))
    torch.testing.assert_close(by.rejected, torch.full(LATENT, -1 / 16, dtype=torch.float64))


def test_what_is_undesirable_need_not_be_learned():
    """Weights 1 and 0: the rejected image has no gradient."""
    by = gradients(METHODS["kto"](beta=2.0, undesirable_weight=0.0), answers(1, 2), answers(1.5, 1))
    assert (by.chosen > 0).all() and not by.rejected.any()
