"""Supervised fine-tuning by hand."""

from __future__ import annotations

import torch

from diffpo.core.types import Condition, Denoised, Noised, Pair, PairBatch
from diffpo.methods import METHODS

SFT = METHODS["sft"]()


def test_loss_and_gradient_by_hand():
    """Two pixels, two frames; differences 1, 3 | 0, 2: frames' errors 5 and 2, loss 3.5; gradient 2 d / 4 = d / 2."""
    prediction = torch.tensor([[[[[1.0, 3.0]], [[0.0, 2.0]]]]], dtype=torch.float64).requires_grad_()
    level = torch.ones(1, dtype=torch.float64)
    target = torch.zeros_like(prediction)
    chosen = Denoised(prediction, Noised(target, level, level, level, target))
    text = Condition(torch.zeros(1, 1, 1))
    batch = PairBatch(Pair(target, None), Pair(text, None), torch.ones(1), torch.zeros(1, dtype=torch.long))
    output = SFT.loss(Pair(chosen, None), None, batch)
    assert output.loss.tolist() == [3.5]
    assert output.metrics["error/chosen"].tolist() == [3.5] and not output.metrics["error/chosen"].requires_grad
    output.loss.sum().backward()
    assert torch.equal(prediction.grad, prediction.detach() / 2)


def test_needs():
    assert not SFT.needs_reference
    assert SFT.sides == ("chosen",)
    assert SFT.requires == frozenset()
