"""Diffusion-SDPO's safeguard: which gradient it damps, by how much, and what that is good for."""

from __future__ import annotations

import pytest
import torch
from hand import answer, answers, given, gradients, judge, rows

from diffpo.core.types import Pair
from diffpo.methods import METHODS, TwoSidedMethod

TWO_SIDED = [name for name, cls in METHODS.items() if issubclass(cls, TwoSidedMethod)]
DPO = METHODS["dpo"]


@pytest.mark.parametrize(
    ("chosen", "rejected", "mu", "factor"),
    [
        (1, 2, 0.0, 0.5),
        (1, 2, 0.9, 0.05),
        (1, 2, 1.0, 0.0),
        (2, 1, 0.0, 1.0),
        (2, 1, 0.75, 0.5),
        (1, -2, 0.9, 1.0),
        (1, -2, 1.0, 1.0),
        (1, 0, 0.9, 1.0),
        (0, 1, 0.9, 1.0),
    ],
)
@pytest.mark.parametrize("name", TWO_SIDED)
def test_factor_by_hand(name, chosen, rejected, mu, factor):
    """Constant predictions c and r with target 0: g_c = c/8, g_r = r/8, |g_c|^2 / <g_c, g_r> = c / r.

    lambda = min(1, (1 - mu) c / r) if c r > 0, else 1: c = 1, r = 2: (1 - mu) / 2; c = 2, r = 1: 2 (1 - mu), at most 1.
    The rejected side's gradient is multiplied by it; loss, metrics and the chosen side's gradient do not change.
    """
    policy = answers(chosen, rejected)
    reference = answers(1.5, 1) if METHODS[name]().needs_reference else None
    scale = {"scale": 1.0} if name == "mapo" else {"beta": 0.1}
    plain, guarded = METHODS[name](**scale), METHODS[name](**scale, guard=mu)
    assert torch.equal(judge(guarded, policy, reference).loss, judge(plain, policy, reference).loss)
    before, after = gradients(plain, policy, reference), gradients(guarded, policy, reference)
    torch.testing.assert_close(after.chosen, before.chosen, rtol=1e-14, atol=0)
    torch.testing.assert_close(after.rejected, factor * before.rejected, rtol=1e-12, atol=0)


def test_a_label_of_zero_protects_the_other_side():
    """c = 1, r = 2, p = 0: the second image is the better one, lambda = 2 (1 - 0.9), and it damps the first's."""
    plain, guarded = (gradients(DPO(beta=0.1, guard=mu), answers(1, 2), answers(1, 1), 0.0) for mu in (None, 0.9))
    torch.testing.assert_close(guarded.rejected, plain.rejected, rtol=1e-14, atol=0)
    torch.testing.assert_close(guarded.chosen, 0.2 * plain.chosen, rtol=1e-12, atol=0)


def test_the_denoising_anchor_is_not_damped():
    """With mu = 1 nothing is left of the rejected image's pull, and all of the chosen image's anchor."""
    anchored = gradients(DPO(beta=0.1, guard=1.0, sft_weight=0.3), answers(1, 2), answers(1, 1))
    alone = gradients(DPO(beta=0.1), answers(1, 2), answers(1, 1))
    torch.testing.assert_close(anchored.chosen, alone.chosen + 0.3 / 8)
    assert not anchored.rejected.any()


@pytest.mark.parametrize("name", TWO_SIDED)
def test_each_pair_has_a_factor_of_its_own(name):
    """Factors 0.05, 1 and 0.2 in one batch and alone."""
    pairs = [answers(1, 2), answers(1, -2), answers(2, 1)]
    other = rows(*[answers(1.5, 1)] * 3) if METHODS[name]().needs_reference else None
    method = METHODS[name](guard=0.9, **({"scale": 1.0} if name == "mapo" else {"beta": 0.1}))
    together = gradients(method, rows(*pairs), other)
    for i, pair in enumerate(pairs):
        alone = gradients(method, pair, other and other.map(lambda x: given(x.prediction.detach()[:1])))
        torch.testing.assert_close(together.chosen[i : i + 1], alone.chosen, rtol=1e-13, atol=0)
        torch.testing.assert_close(together.rejected[i : i + 1], alone.rejected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("mu", [None, 0.0, 0.3, 0.9])
def test_a_step_does_not_raise_the_chosen_error(mu):
    """Where both predictions move alike, as when one network makes them, by minus the sum of their gradients.

    The rejected prediction is close to three times the chosen one, so that <g_c, g_r> is about 3 |g_c|^2: DPO alone
    raises the chosen error. To first order a guarded step changes it by -w mu |g_c|^2, w = beta/2 sigmoid(-u).
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 1, 4, 1, 2, 2, generator=generator, dtype=torch.float64)
    chosen = noise[0].requires_grad_()
    policy = Pair(given(chosen), given((3 * noise[0].detach() + 0.1 * noise[1]).requires_grad_()))
    method = DPO(beta=0.1, guard=mu)
    by = gradients(method, policy, answers(1, 1))
    rate = 1e-4
    moved = given(chosen.detach() - rate * (by.chosen + by.rejected))
    change = (moved.error - policy.chosen.error).item()
    if mu is None:
        assert change > 1e-8
        return
    weight = 0.05 * torch.sigmoid(-judge(method, policy, answers(1, 1)).metrics["rewards/margins"])
    slope = 2 * chosen.detach() / 16
    assert change == pytest.approx(-rate * (weight * mu * slope.square().sum()).item(), rel=0.01, abs=1e-9)


def test_half_precision_predictions_are_raised_first():
    """bfloat16 answers: errors and factors in float32."""
    policy = Pair(*(given(answer(x).prediction.detach().bfloat16().requires_grad_()) for x in (1, 2)))
    loss = judge(DPO(beta=0.1, guard=0.9), policy, answers(1, 1)).loss
    assert loss.dtype in (torch.float32, torch.float64)
    (by_rejected,) = torch.autograd.grad(loss.sum(), policy.rejected.prediction)
    plain = gradients(DPO(beta=0.1), answers(1, 2), answers(1, 1)).rejected
    torch.testing.assert_close(by_rejected.double(), 0.05 * plain, rtol=1e-2, atol=0)
