"""Inversions on a GPU: nothing waits for it, every call holds equally many images, the points stay what they are."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from cards import DEVICE

pytestmark = pytest.mark.gpu
INVERTED = {"method.name": "inpo", "train.accumulate": 3, "method.inversion": {"steps": 3, "renoise": 1}}
PAIRS = 4


@contextmanager
def never_waiting():
    """Let torch raise where the CPU would wait for the card."""
    if DEVICE.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if DEVICE.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def micro_batches(started):
    return [replace(started.batch, index=started.batch.index + PAIRS * number) for number in range(3)]


def points(learner, batches):
    from diffpo.training.serving import inverted

    found = [batch.inverted for batch in inverted(learner, batches, 0)]
    return torch.cat([torch.stack([*sides]) for sides in found], dim=1)


@pytest.mark.parametrize("fused", [False, None])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_an_inversion_waits_for_nothing(start, record_property, tuning, fused):
    """No call keeps a graph, or is of another size: 24 images with 8 answers each, 12 at most, are 16 a call."""
    started = start(INVERTED | {"model.name": tuning, "train.fused": fused})
    learner, asked = started.learner, []
    first = points(learner, micro_batches(started))  # compiles and plans what it needs
    learner.policy.network.register_forward_hook(
        lambda _, given, answer: asked.append((len(given[0]), answer[0].requires_grad))
    )
    ready = [batch.to(DEVICE, torch.float32) for batch in micro_batches(started)]
    with never_waiting():
        again = points(learner, ready)
    torch.testing.assert_close(again, first, rtol=1e-2, atol=1e-2)
    assert {graph for _, graph in asked} == {False}
    if DEVICE.type == "cuda":
        assert {size for size, _ in asked} == {16}
    record_property("calls", len(asked))


def test_the_points_are_those_of_each_micro_batch(start):
    """In double precision: each row has its own time, whoever goes with it and however many are idle."""
    started = start(INVERTED | {"train.dtype": "float64", "train.mixed_precision": "no"})
    learner, config = started.learner, started.learner.config
    found = points(learner, micro_batches(started))
    learner.config = replace(config, train=replace(config.train, accumulate=1))
    expected = torch.cat([points(learner, [batch]) for batch in micro_batches(started)], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
