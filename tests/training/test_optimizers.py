"""Optimizers and schedules by name: what they do to a weight, by hand."""

from __future__ import annotations

import sys

import pytest
import torch

from diffpo.config.run import Train
from diffpo.errors import UserError
from diffpo.training.optimizers import make_optimizer, make_schedule


def moved(train, gradient=0.5, start=1.0):
    """A weight after one update."""
    weight = torch.nn.Parameter(torch.full((2,), start, dtype=torch.float64))
    optimizer = make_optimizer(train, [weight])
    weight.grad = torch.full_like(weight, gradient)
    optimizer.step()
    return weight.detach()


def test_adamw_by_hand():
    """First step of AdamW: w (1 - lr decay) - lr g / (|g| + eps) = 1 (1 - 0.1 x 0.2) - 0.1 x 0.5 / (0.5 + 0.5)."""
    train = Train(steps=1, learning_rate=0.1, weight_decay=0.2, adam_epsilon=0.5)
    assert moved(train).tolist() == pytest.approx([0.98 - 0.05] * 2, rel=1e-12)


def test_betas_arrive():
    optimizer = make_optimizer(Train(steps=1, adam_beta1=0.5, adam_beta2=0.7), [torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.7)
    assert optimizer.param_groups[0]["fused"]


def test_adafactor_uses_the_learning_rate_as_it_is():
    """Not scaled by the weight, not relative to the step: g / rms(g) is 1, so the step is lr."""
    train = Train(steps=1, learning_rate=0.1, weight_decay=0.0, optimizer="adafactor")
    for start in (1.0, 100.0):
        assert moved(train, start=start).tolist() == pytest.approx([start - 0.1] * 2, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_adafactor_is_that_of_transformers_bit_for_bit(dtype, monkeypatch):
    """Matrices, filters and vectors; cut into lists; a parameter without a gradient now and then; the same state."""
    from transformers.optimization import Adafactor

    monkeypatch.setattr("diffpo.training.adafactor.ELEMENTS", 100)
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator).to(dtype) for shape in [(7,), (5, 9), (3, 4, 3, 3), (11, 8), (1,)]]
    ours, theirs = ([torch.nn.Parameter(x.clone()) for x in start] for _ in range(2))
    train = Train(steps=1, learning_rate=0.03, weight_decay=0.1, optimizer="adafactor")
    fixed = {"scale_parameter": False, "relative_step": False, "warmup_init": False, "clip_threshold": 1.0}
    pair = make_optimizer(train, ours), Adafactor(theirs, lr=0.03, weight_decay=0.1, **fixed)
    for step in range(4):
        for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            gradient = torch.randn(a.shape, generator=generator).to(dtype) * 3
            a.grad, b.grad = (None, None) if (step, k) == (1, 3) else (gradient, gradient.clone())
        for optimizer in pair:
            optimizer.step()
        assert all(a.equal(b) for a, b in zip(ours, theirs, strict=True))
    for a, b in zip(ours, theirs, strict=True):
        held = pair[0].state[a]
        assert all(torch.equal(torch.as_tensor(x), torch.as_tensor(pair[1].state[b][name])) for name, x in held.items())


def test_adamw_in_8_bits_moves_like_adamw():
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    start, gradient = torch.randn(8192), torch.randn(8192)  # below 4096 entries it keeps 32 bits
    after = {}
    for name in ("adamw", "adamw8bit"):
        weight = torch.nn.Parameter(start.clone())
        optimizer = make_optimizer(Train(steps=1, learning_rate=0.01, optimizer=name), [weight])
        weight.grad = gradient.clone()
        optimizer.step()
        after[name] = weight.detach()
    assert optimizer.state[weight]["state1"].dtype == torch.uint8
    assert (after["adamw8bit"] - after["adamw"]).abs().max() < 2e-3
    assert (after["adamw"] - start).abs().mean() > 5e-3


def test_8_bits_without_bitsandbytes_is_a_users_mistake(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "bitsandbytes"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as Python marks what is not to be imported
    with pytest.raises(UserError, match=r"adamw8bit needs bitsandbytes: pip install 'diffpo\[bnb\]'"):
        make_optimizer(Train(steps=1, optimizer="adamw8bit"), [torch.nn.Parameter(torch.zeros(1))])


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [8, 8, 8, 8]),
        ("constant_with_warmup", [0, 4, 8, 8]),
        ("linear", [0, 4, 8, 4]),
        ("cosine", [0, 4, 8, 4]),
    ],
)
def test_schedules_count_updates(schedule, rates):
    train = Train(steps=4, warmup_steps=2, schedule=schedule, learning_rate=8.0)
    optimizer = make_optimizer(train, [torch.nn.Parameter(torch.zeros(1))])
    steps = make_schedule(train, optimizer)
    seen = []
    for _ in range(4):
        seen += steps.get_last_lr()
        optimizer.step()
        steps.step()
    assert seen == pytest.approx(rates)
