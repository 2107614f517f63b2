"""Fused networks on a GPU: the kernels compute what torch computes, and a step of training means the same."""

from __future__ import annotations

import math

import kernel_cases as cases
import pytest
import torch
import torch.nn.functional as F
from torch.utils._triton import has_triton

from diffpo.training.update import forward

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not has_triton(), reason="there is no Triton here")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("make", "sizes"),
    [
        (cases.group_norm, (2, 320, 16, 32, True)),
        (cases.group_norm, (3, 96, 7, 4, False)),
        (cases.group_norm, (1, 8, 5, 8, True)),
        (cases.layer_norm, (1001, 320)),
        (cases.layer_norm, (7, 24)),
        (cases.layer_norm_alone, (4097, 1280)),
        (cases.geglu, (1001, 1280)),
        (cases.geglu, (7, 24)),
        (cases.geglu_alone, (4097, 300)),
        (cases.added, (3, 320, 33)),
        (cases.added, (2, 70, 5)),
        (cases.doubled, (3, 320, 33)),
        (cases.doubled, (2, 70, 5)),
    ],
)
def test_a_kernel_computes_what_torch_computes(make, sizes, dtype):
    cases.check(*make(torch.empty(0, device="cuda", dtype=dtype), *sizes))


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

    cases.check(lambda x, first, second: LowRank.apply(x, w, b, first, second, scale), theirs, [x, first, second])
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
