"""Objectives by hand, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from diffpo import objectives
from diffpo.types import Pair


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_reward():
    """1/2 (R - M): policy errors 0.2, 0.5 and 0.3 against reference 0.3 -> 0.05, -0.1, 0."""
    assert objectives.reward(vector(0.2, 0.5, 0.3), vector(0.3, 0.3, 0.3)).tolist() == pytest.approx([0.05, -0.1, 0])


def test_margin():
    """-1/2 [(M_c - M_r) - (R_c - R_r)].

    Row 0: -1/2 [(0.2 - 0.5) - (0.3 - 0.4)] = -1/2 [-0.3 + 0.1] = 0.1
    Row 1: -1/2 [(0.6 - 0.1) - (0.2 - 0.3)] = -1/2 [0.5 + 0.1] = -0.3
    Row 2: policy == reference -> 0
    """
    policy = Pair(vector(0.2, 0.6, 0.7), vector(0.5, 0.1, 0.9))
    reference = Pair(vector(0.3, 0.2, 0.7), vector(0.4, 0.3, 0.9))
    assert objectives.margin(policy, reference).tolist() == pytest.approx([0.1, -0.3, 0.0])


def test_margin_is_the_difference_of_the_rewards():
    """1/2 (0.3 - 0.2) - 1/2 (0.4 - 0.5) = 0.05 + 0.05 = 0.1."""
    policy, reference = Pair(vector(0.2), vector(0.5)), Pair(vector(0.3), vector(0.4))
    difference = objectives.reward(policy.chosen, reference.chosen) - objectives.reward(
        policy.rejected, reference.rejected
    )
    assert objectives.margin(policy, reference).item() == pytest.approx(difference.item()) == pytest.approx(0.1)


def test_dpo():
    """-log sigmoid(u) = log(1 + e^-u): 0 -> log 2; log 3 -> log(1 + 1/3); -log 3 -> log 4; -1000 -> 1000."""
    loss = objectives.dpo(vector(0, math.log(3), -math.log(3), -1000))
    assert loss.tolist() == pytest.approx([math.log(2), math.log(4 / 3), math.log(4), 1000], rel=1e-15)


def test_dpo_gradient():
    """d/du log(1 + e^-u) = -1 / (1 + e^u): 0 -> -1/2; log 3 -> -1/4; -log 3 -> -3/4."""
    u = vector(0, math.log(3), -math.log(3)).requires_grad_()
    objectives.dpo(u).sum().backward()
    assert u.grad.tolist() == pytest.approx([-0.5, -0.25, -0.75], rel=1e-15)


def test_rows_do_not_mix():
    """No statistic crosses rows: each row alone gives what it gives in the batch."""
    policy, reference = Pair(vector(0.2, 0.6), vector(0.5, 0.1)), Pair(vector(0.3, 0.2), vector(0.4, 0.3))
    together = objectives.dpo(10 * objectives.margin(policy, reference))
    for row in range(2):
        one = objectives.margin(policy.map(lambda x: x[row : row + 1]), reference.map(lambda x: x[row : row + 1]))  # noqa: B023
        assert torch.equal(objectives.dpo(10 * one), together[row : row + 1])
