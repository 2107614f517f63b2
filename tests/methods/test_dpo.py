"""Diffusion-DPO by hand: errors, rewards, loss and gradients of given predictions."""

from __future__ import annotations

import math

import pytest
import torch
from hand import LATENT, answer, batch

from diffpo.core.types import Denoised, Pair
from diffpo.methods import METHODS, PairwiseMethod


def test_loss_and_metrics_by_hand():
    """Errors: policy 1, 4 (predictions 1, 2); reference 2.25, 1 (1.5, 1); beta 2.

    margin = -1/2 [(1 - 4) - (2.25 - 1)] = 2.125, u = 4.25, loss = log(1 + e^-4.25).
    rewards: 2/2 (2.25 - 1) = 1.25 and 2/2 (1 - 4) = -3; their difference is u.
    """
    output = METHODS["dpo"](beta=2.0).loss(Pair(answer(1), answer(2)), Pair(answer(1.5), answer(1)), batch())
    assert output.loss.item() == pytest.approx(math.log1p(math.exp(-4.25)), rel=1e-12)
    values = {name: value.item() for name, value in output.metrics.items()}
    assert values == pytest.approx(
        {
            "rewards/chosen": 1.25,
            "rewards/rejected": -3.0,
            "rewards/margins": 4.25,
            "rewards/accuracies": 1.0,
            "error/chosen": 1.0,
            "error/rejected": 4.0,
            "error/reference_chosen": 2.25,
            "error/reference_rejected": 1.0,
        }
    )


def test_accuracy_counts_ties_half():
    right, wrong, tie = (
        METHODS["dpo"]().loss(Pair(answer(a), answer(b)), Pair(answer(1), answer(1)), batch()).metrics
        for a, b in ((1, 2), (2, 1), (2, 2))
    )
    assert [x["rewards/accuracies"].item() for x in (right, wrong, tie)] == [1.0, 0.0, 0.5]


def test_gradient_by_hand():
    """d loss / d M_c = beta/2 sigmoid(-u) > 0 and d loss / d M_r = -beta/2 sigmoid(-u) < 0.

    With beta 2, errors 1, 4 | 2.25, 1 as above: u = 4.25. A prediction's element moves its error by 2 (p - target) / n,
    n = 16: for the chosen 2 * 1 / 16 = 1/8, for the rejected 2 * 2 / 16 = 1/4.
    """
    policy, reference = Pair(answer(1), answer(2)), Pair(answer(1.5), answer(1))
    METHODS["dpo"](beta=2.0).loss(policy, reference, batch()).loss.sum().backward()
    weight = 1 / (1 + math.exp(4.25))
    torch.testing.assert_close(policy.chosen.prediction.grad, torch.full(LATENT, weight / 8, dtype=torch.float64))
    torch.testing.assert_close(policy.rejected.prediction.grad, torch.full(LATENT, -weight / 4, dtype=torch.float64))


@pytest.mark.parametrize("errors", [(1.0, 2.0), (2.0, 1.0), (3.0, 3.0), (0.5, 4.0)])
def test_gradient_direction(errors):
    """Wherever it stands: down with the error of the chosen image, up with that of the rejected one."""
    policy = Pair(*(answer(x) for x in errors))
    METHODS["dpo"](beta=0.5).loss(policy, Pair(answer(1), answer(1)), batch()).loss.sum().backward()
    assert (policy.chosen.prediction.grad > 0).all(), "predictions lie above their target of zero"
    assert (policy.rejected.prediction.grad < 0).all()


def test_frames_are_reduced_before_the_sigmoid():
    """Two frames with chosen errors 1 and 9: the loss is that of their mean 5, not the mean of two losses.

    reference 5, 5 and rejected 5: margin = -1/2 [(5 - 5) - 0] = 0, so log 2; frame by frame it would be
    1/2 [log(1 + e^-2) + log(1 + e^2)] = 1.127.
    """
    shape = (1, 4, 2, 2, 2)
    frames = torch.ones(shape, dtype=torch.float64)
    frames[:, :, 1] = 3
    plain = answer(math.sqrt(5), shape=shape)
    policy = Pair(Denoised(frames, plain.noised), plain)
    assert policy.chosen.error.tolist() == [[1.0, 9.0]]
    loss = METHODS["dpo"](beta=1.0).loss(policy, Pair(plain, plain), batch()).loss
    assert loss.item() == pytest.approx(math.log(2), rel=1e-12)


def test_a_soft_label_is_an_expectation():
    """u = 4.25 as above. p = 0.75: 3/4 log(1 + e^-4.25) + 1/4 log(1 + e^4.25), the cross entropy with label p."""
    policy, reference = Pair(answer(1), answer(2)), Pair(answer(1.5), answer(1))
    loss = METHODS["dpo"](beta=2.0).loss(policy, reference, batch(preference=0.75)).loss
    by_hand = 0.75 * math.log1p(math.exp(-4.25)) + 0.25 * math.log1p(math.exp(4.25))
    assert loss.item() == pytest.approx(by_hand, rel=1e-12)


def test_defaults_and_needs():
    """Beta 2000 is the paper's for SD1.5; nothing beyond prompt, chosen and rejected is asked of the table."""
    method = METHODS["dpo"]()
    assert isinstance(method, PairwiseMethod)
    assert (method.beta, method.needs_reference, method.requires, method.sides) == (
        2000.0,
        True,
        frozenset(),
        ("chosen", "rejected"),
    )
