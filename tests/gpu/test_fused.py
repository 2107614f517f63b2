"""Fused networks on a GPU: the kernels compute what torch computes, and a step of training means the same."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._triton import has_triton

from diffpo.training.update import forward

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not has_triton(), reason="there is no Triton here")]
ROUNDING = 0.01
"""What half precision leaves of a norm, as a share of it."""


def check(ours, theirs, inputs):
    """Compare an answer and its gradients with torch's in float64."""
    found = []
    for call, dtype in ((ours, None), (theirs, torch.float64)):
        given = [x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs]
        answer = call(*given)
        torch.manual_seed(0)
        pull = torch.randn(answer.shape, dtype=torch.float64, device=answer.device)
        found.append([answer, *torch.autograd.grad(answer, given, pull.to(answer.dtype))])
    for a, b in zip(*found, strict=True):
        assert (a.double() - b.double()).norm() <= ROUNDING * b.double().norm() + 1e-5  # a shift may have no say at all


@pytest.mark.parametrize(("n", "c", "side", "groups"), [(2, 320, 16, 32), (3, 96, 7, 4), (1, 8, 5, 8)])
@pytest.mark.parametrize("silu", [True, False])
def test_group_norm_with_a_shift(n, c, side, groups, silu):
    from diffpo.models.kernels import GroupNorm

    torch.manual_seed(1)
    x = torch.randn(n, c, side, side, device="cuda", dtype=torch.bfloat16) + 2
    w, b, shift = (torch.randn(size, device="cuda") for size in ((c,), (c,), (n, c)))

    def theirs(x, shift, w, b):
        answer = F.group_norm(x + shift[:, :, None, None], groups, w, b, 1e-5)
        return F.silu(answer) if silu else answer

    inputs = [x.to(memory_format=torch.channels_last), shift, w, b]
    check(lambda x, shift, w, b: GroupNorm.apply(x, shift, w, b, groups, 1e-5, silu), theirs, inputs)


@pytest.mark.parametrize(("rows", "width"), [(1001, 320), (7, 24), (4097, 1280)])
def test_layer_norm_and_gates(rows, width):
    from diffpo.models.kernels import Geglu, LayerNorm

    torch.manual_seed(1)
    x = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16) + 1
    w, b = (torch.randn(width, device="cuda") for _ in range(2))
    check(lambda x, w, b: LayerNorm.apply(x, w, b, 1e-5), lambda x, w, b: F.layer_norm(x, (width,), w, b), [x, w, b])
    gated = torch.randn(rows, 2 * width, device="cuda", dtype=torch.bfloat16)
    check(Geglu.apply, lambda x: x[:, :width] * F.gelu(x[:, width:]), [gated])


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shape", "wide", "out", "rank"), [((4, 77, 320), 320, 640, 16), ((3, 100), 100, 60, 5)])
@pytest.mark.parametrize("scale", [1.0, 0.75])
def test_a_low_rank_layer(half, shape, wide, out, rank, scale):
    """Gradients of A and B come out of the product in single precision, without a cast."""
    from diffpo.models.low_rank import LowRank

    torch.manual_seed(1)
    x, w, b = (torch.randn(size, device="cuda").to(half) for size in (shape, (out, wide), (out,)))
    first, second = (torch.randn(size, device="cuda") for size in ((rank, wide), (out, rank)))

    def theirs(x, first, second):
        return F.linear(x, w.double(), b.double()) + scale * (x @ first.t()) @ second.t()

    check(lambda x, first, second: LowRank.apply(x, w, b, first, second, scale), theirs, [x, first, second])
    zero = LowRank.apply(x, w, b, first, torch.zeros_like(second), scale)
    assert torch.equal(zero, F.linear(x.reshape(-1, wide), w, b).view(*shape[:-1], out))
    inputs = [y.requires_grad_() for y in (x, first, second)]
    found = torch.autograd.grad(LowRank.apply(x, w, b, first, second, scale).float().sum(), inputs)
    assert [y.dtype for y in found] == [half, torch.float32, torch.float32]


@pytest.mark.parametrize(("tuning", "family"), [("full", "levels"), ("lora", "levels"), ("lora", "sd3")])
def test_a_fused_step_is_as_near_to_single_precision_as_the_plain_one(start, cosine, tuning, family):
    """Of a tiny network half precision leaves a cosine of about 0.999 only, in either way."""
    ways = ({"train.mixed_precision": "no"}, {"train.fused": False}, {"train.fused": True})
    exact, plain, fused = (start({"model.name": tuning, **way}, family).step() for way in ways)
    assert fused[0] == pytest.approx(plain[0], rel=1e-3)
    assert cosine(exact[1], fused[1]) > cosine(exact[1], plain[1]) - 0.001


@pytest.mark.parametrize(("tuning", "family"), [("full", "levels"), ("lora", "levels"), ("lora", "sd3")])
def test_equal_networks_give_exactly_log_2(start, tuning, family):
    started = start({"model.name": tuning, "train.fused": True, "method.beta": 5000.0}, family, moved=False)
    loss = forward(started.learner, started.batch, 0).loss
    assert torch.equal(loss, torch.full_like(loss, math.log(2)))
