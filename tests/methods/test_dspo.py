"""DSPO by hand, and its gradient by finite differences: it flows through sigmoid(u)."""

from __future__ import annotations

import math

import pytest
import torch
from hand import LATENT, answers, given, judge

from diffpo.core.types import Pair
from diffpo.methods import METHODS


def test_loss_by_hand():
    """beta 2, predictions 1, 2 | 1.5, 1, target 0: u = 4.25 (test_dpo), q = 1 - 1.5 = -1/2.

    loss = (1 - 2 (1 - sigmoid(4.25)) (-1/2))^2 = (1 + sigmoid(-4.25))^2.
    """
    loss = judge(METHODS["dspo"](beta=2.0), answers(1, 2), answers(1.5, 1)).loss
    assert loss.item() == pytest.approx((1 + 1 / (1 + math.exp(4.25))) ** 2, rel=1e-13)


def test_it_is_close_to_sft():
    """As released, with beta 0.01: sigmoid(u) is 1/2, so the error of 1 gains a correction of 0.01 / 2 * 1/2."""
    loss = judge(METHODS["dspo"](), answers(1, 2), answers(1.5, 1)).loss
    assert loss.item() == pytest.approx((1 + 0.01 / 4) ** 2, rel=1e-3)


@pytest.mark.parametrize("preference", [1.0, 0.3])
def test_gradient_by_finite_differences(preference):
    """Of random predictions, by both sides: the rejected one's is there although it enters through u alone."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(4, 2, *LATENT[1:], generator=generator, dtype=torch.float64)
    reference = Pair(given(numbers[2], 0.2), given(numbers[3], 0.2))
    method = METHODS["dspo"](beta=2.0)

    def loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        return judge(method, Pair(given(chosen, 0.2), given(rejected, 0.2)), reference, preference).loss

    sides = [numbers[i].clone().requires_grad_() for i in (0, 1)]
    assert torch.autograd.gradcheck(loss, sides)
    by_chosen, by_rejected = torch.autograd.grad(loss(*sides).sum(), sides)
    assert by_chosen.abs().min() > 0 and by_rejected.abs().max() > 1e-3
