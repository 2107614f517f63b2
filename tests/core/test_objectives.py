"""Objectives by hand, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from diffpo.core import objectives
from diffpo.core.types import Pair


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


LOG2, LOG3 = math.log(2), math.log(3)


def slopes(loss, *inputs: torch.Tensor) -> list[list[float]]:
    """Derivatives of the summed loss by each input."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    return [x.tolist() for x in torch.autograd.grad(loss(*leaves).sum(), leaves)]


def test_cdpo():
    """e = 1/4. u = 0: log 2. u = log 3: 3/4 log(4/3) + 1/4 log 4. u = -log 3: 3/4 log 4 + 1/4 log(4/3).

    Derivative sigmoid(u) - (1 - e): 1/2 - 3/4 = -1/4; 3/4 - 3/4 = 0; 1/4 - 3/4 = -1/2.
    """
    u = vector(0, LOG3, -LOG3)
    a, b = math.log(4 / 3), math.log(4)
    by_hand = [LOG2, 0.75 * a + 0.25 * b, 0.75 * b + 0.25 * a]
    assert objectives.cdpo(u, 0.25).tolist() == pytest.approx(by_hand, rel=1e-14)
    assert by_hand[1] == pytest.approx(0.56234, abs=1e-5)
    assert slopes(lambda x: objectives.cdpo(x, 0.25), u)[0] == pytest.approx([-0.25, 0, -0.5], abs=1e-14)


def test_rdpo():
    """e = 1/4. u = 0: (3/4 - 1/4) log 2 / (1/2) = log 2. u = log 3: (3/4 log(4/3) - 1/4 log 4) / (1/2) = -0.26162."""
    u = vector(0, LOG3)
    by_hand = [LOG2, 2 * (0.75 * math.log(4 / 3) - 0.25 * math.log(4))]
    assert objectives.rdpo(u, 0.25).tolist() == pytest.approx(by_hand, rel=1e-14)
    assert by_hand[1] == pytest.approx(-0.26162, abs=1e-5)


def test_rdpo_is_unbiased():
    """Labels that are flipped with probability e: (1 - e) rdpo(u) + e rdpo(-u) is the loss of the clean label."""
    u = vector(-3, 0.2, 5)
    expected = 0.7 * objectives.rdpo(u, 0.3) + 0.3 * objectives.rdpo(-u, 0.3)
    torch.testing.assert_close(expected, objectives.dpo(u), rtol=1e-13, atol=1e-13)


def test_ipo():
    """beta = 1/4, so the target is 2: margins 0, 1, 2, 5 -> 4, 1, 0, 9; derivative 2 (margin - 2): -4, -2, 0, 6."""
    margin = vector(0, 1, 2, 5)
    assert objectives.ipo(margin, 0.25).tolist() == [4, 1, 0, 9]
    assert slopes(lambda x: objectives.ipo(x, 0.25), margin) == [[-4, -2, 0, 6]]


def test_hinge():
    """relu(1 - u): -1, 0.25, 2 -> 2, 0.75, 0; derivative -1, -1, 0."""
    u = vector(-1, 0.25, 2)
    assert objectives.hinge(u).tolist() == [2, 0.75, 0]
    assert slopes(objectives.hinge, u) == [[-1, -1, 0]]


def test_dmpo():
    """KL(p || 3/4), p = sigmoid(u).

    u = 0: 1/2 log(2/3) + 1/2 log 2 = 0.14384. u = log 3: p = 3/4, so 0.
    u = -log 3: 1/4 log(1/3) + 3/4 log 3 = 1/2 log 3.
    Derivative p (1 - p) (u - log 3): -1/4 log 3; 0; -3/16 * 2 log 3 = -3/8 log 3.
    """
    u = vector(0, LOG3, -LOG3)
    by_hand = [0.5 * math.log(2 / 3) + 0.5 * LOG2, 0, LOG3 / 2]
    assert objectives.dmpo(u, 0.25).tolist() == pytest.approx(by_hand, abs=1e-15)
    assert by_hand[0] == pytest.approx(0.14384, abs=1e-5)
    derivative = slopes(lambda x: objectives.dmpo(x, 0.25), u)[0]
    assert derivative == pytest.approx([-LOG3 / 4, 0, -3 * LOG3 / 8], abs=1e-15)


def test_kto():
    """Rewards (g_c, g_r), weights 2 and 4: 1/2 [2 sigmoid(k - g_c) + 4 sigmoid(g_r - k)].

    (log 3, -log 3): k = 0: 1/2 [2/4 + 4/4] = 3/4.
    (-log 3, -log 3): the mean is negative, k = 0: 1/2 [2 * 3/4 + 4/4] = 5/4.
    (2 log 3, 0): k = log 3: 1/2 [2/4 + 4/4] = 3/4.
    """
    chosen, rejected = vector(LOG3, -LOG3, 2 * LOG3), vector(-LOG3, -LOG3, 0)
    assert objectives.kto(chosen, rejected, 2, 4).tolist() == pytest.approx([0.75, 1.25, 0.75], rel=1e-14)


def test_kto_keeps_its_reference_point():
    """k = log 3 is a constant, weights 2 and 4: d/dg_c = -2/2 * 1/4 * 3/4 = -3/16, d/dg_r = 4/2 * 3/16 = 6/16.

    With a gradient through k both would have their mean, 9/32: equal weights could not tell.
    """
    by_chosen, by_rejected = slopes(lambda c, r: objectives.kto(c, r, 2, 4), vector(2 * LOG3), vector(0))
    assert (by_chosen, by_rejected) == (pytest.approx([-3 / 16]), pytest.approx([6 / 16]))


def test_mapo_link():
    """x / (e^x - 1) with x = s l, s = 1/2: x = log 2 -> log 2; log 3 -> log 3 / 2; 0 -> 1.

    Small x: 1 - x/2 + x^2/12. e^x - 1 without `expm1` would have no correct digit at 1e-16, four at 1e-12.
    """
    error = 2 * vector(LOG2, LOG3, 0, 1e-4, 1e-12, 1e-16, 1e-300)
    by_hand = [LOG2, LOG3 / 2, 1, 1 - 5e-5 + 1e-8 / 12, 1 - 5e-13, 1, 1]
    assert objectives.mapo_link(error, 0.5).tolist() == pytest.approx(by_hand, rel=1e-15)


def test_mapo_link_falls_by_half_x():
    """Derivative by l at small l: -s/2 = -1/4, in float64 and, at errors as small as any network's, in float32."""
    assert slopes(lambda x: objectives.mapo_link(x, 0.5), vector(1e-6))[0] == pytest.approx([-0.25], rel=1e-5)
    single = torch.tensor([1e-3], dtype=torch.float32)
    assert slopes(lambda x: objectives.mapo_link(x, 0.5), single)[0] == pytest.approx([-0.25], rel=1e-2)


def test_mapo_logit():
    """10 (log 2 - log 3 / 2) = 1.43841 for s l = log 2 and log 3; the smaller chosen error is the better."""
    logit = objectives.mapo_logit(2 * vector(LOG2), 2 * vector(LOG3), 0.5, 10)
    assert logit.item() == pytest.approx(10 * (LOG2 - LOG3 / 2), rel=1e-14) == pytest.approx(1.43841, abs=1e-5)


EXTREME = {
    "dpo": objectives.dpo,
    "cdpo": lambda u: objectives.cdpo(u, 0.1),
    "rdpo": lambda u: objectives.rdpo(u, 0.1),
    "ipo": lambda u: objectives.ipo(u, 2000.0),
    "hinge": objectives.hinge,
    "dmpo": lambda u: objectives.dmpo(u, 0.01),
    "kto": lambda u: objectives.kto(u, -u, 1.0, 1.0),
    "kto, both": lambda u: objectives.kto(u, u, 1.0, 1.0),
    "mapo": lambda u: objectives.dpo(objectives.mapo_logit(u.abs(), 2 * u.abs(), 0.5, 1000.0)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", EXTREME)
def test_extreme_inputs_stay_finite(name, dtype):
    """Losses and gradients, wherever an absurd update may lead."""
    u = torch.tensor([-1e8, -1e4, -100, 0, 100, 1e4, 1e8], dtype=dtype, requires_grad=True)
    loss = EXTREME[name](u)
    (gradient,) = torch.autograd.grad(loss.sum(), u)
    assert loss.isfinite().all() and gradient.isfinite().all(), (loss, gradient)
