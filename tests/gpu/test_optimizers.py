"""Optimizers on a GPU: each moves a weight as plain AdamW on the CPU does, or as it does on the CPU itself."""

from __future__ import annotations

import pytest
import torch
from cards import DEVICE

from diffpo.config.run import Train
from diffpo.training.optimizers import make_optimizer

pytestmark = pytest.mark.gpu
UPDATES = 5


def moved(device, optimizer: str) -> tuple[torch.Tensor, torch.optim.Optimizer]:
    """A weight of 96 x 64 after some updates, by gradients that are the same on every device."""
    draws = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(96, 64, generator=draws).to(device))
    made = make_optimizer(Train(steps=UPDATES, learning_rate=0.01, optimizer=optimizer), [weight])
    for _ in range(UPDATES):
        weight.grad = torch.randn(96, 64, generator=draws).to(device)
        made.step()
    return weight.detach().cpu(), made


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_the_card_moves_a_weight_as_the_cpu_does(optimizer):
    there, _ = moved(DEVICE, optimizer)
    here, _ = moved("cpu", optimizer)
    torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-6)


def test_adamw_is_fused():
    _, made = moved(DEVICE, "adamw")
    assert made.param_groups[0]["fused"]


def test_adamw_in_8_bits_moves_like_adamw():
    pytest.importorskip("bitsandbytes", reason="adamw8bit: bitsandbytes is not installed here")
    there, made = moved(DEVICE, "adamw8bit")
    here, _ = moved("cpu", "adamw")
    state = next(iter(made.state.values()))
    assert state["state1"].dtype == torch.uint8 and state["state1"].device.type == DEVICE.type
    assert (there - here).abs().max() < 0.01, "after steps of 0.01 each"
