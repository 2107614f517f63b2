"""Half precision on a GPU: the loss scaler, equal networks, and layouts and attentions that change no result."""

from __future__ import annotations

import math

import pytest
import torch
from cards import needs_card
from runs import metrics, weights
from torch.nn.attention import SDPBackend, sdpa_kernel

pytestmark = pytest.mark.gpu
HALF = ["bf16", pytest.param("fp16", marks=needs_card)]
WHOLE = ["float32", "float64"]
FULL = {"model.name": "full"}


def trained(started):
    named = started.learner.policy.network.named_parameters()
    return {name: p.detach().cpu().clone() for name, p in named if p.requires_grad}


@needs_card
def test_an_overflow_skips_the_update_and_lowers_the_scale(start):
    """The scale is set so high that the first gradient is infinite: weights and schedule stay where they are."""
    from diffpo.training.update import update

    started = start({"train.mixed_precision": "fp16", "train.warmup_steps": 2, "method.beta": 2000.0})
    learner, scaler = started.learner, started.accelerator.scaler
    scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0**100})
    before = trained(started)
    told = update(learner, [started.batch], 0, 0)
    assert math.isfinite(told["loss"]) and not math.isfinite(told["grad_norm"])
    assert scaler.get_scale() == 2.0**99 and learner.schedule.last_epoch == 0
    assert all(torch.equal(p, before[name]) for name, p in trained(started).items())
    scaler.load_state_dict(scaler.state_dict() | {"scale": 16.0})
    for number in (1, 2):  # the first one's learning rate is 0: it warms up
        told = update(learner, [started.batch], 0, number)
        assert math.isfinite(told["grad_norm"])
    after = trained(started)
    assert learner.schedule.last_epoch == 2 and any(not torch.equal(p, before[name]) for name, p in after.items())


@needs_card
def test_a_run_goes_on_after_an_overflow(world):
    """So large a beta overflows at the scale that the scaler starts with; every update is logged all the same."""
    run = world.train("overflow", {"train.mixed_precision": "fp16", "method.beta": 2e4, "train.steps": 20})
    lines = metrics(run)
    assert [line["step"] for line in lines] == [*range(1, 21)]
    skipped = [line for line in lines if not math.isfinite(line["grad_norm"])]
    assert skipped and lines[0] in skipped and lines[-1] not in skipped
    assert all(x.isfinite().all() for x in weights(run).values())


@needs_card
def test_single_precision_is_not_rounded_to_tf32(start, cosine):
    """Of ten bits, as TF32 has, a loss and its gradient would keep three digits; single precision keeps six."""
    single, double = (start(FULL | {"train.mixed_precision": "no", "train.dtype": dtype}).step() for dtype in WHOLE)
    assert single[0] == pytest.approx(double[0], rel=1e-5) and cosine(single[1], double[1]) > 1 - 1e-7


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_equal_networks_give_log_2(start, tuning, precision):
    """Policy and reference are equal at the start, to the last bit, whatever is trained."""
    half = {"fp16": "float16", "bf16": "bfloat16"}[precision]
    changes = {"model.name": tuning, "train.mixed_precision": precision, "method.beta": 5000.0}
    started = start(changes | ({"model.dtype": half} if tuning == "lora" else {}), moved=False)
    from diffpo.training.update import forward

    output = forward(started.learner, started.batch, 0)
    assert output.metrics["rewards/margins"].abs().max() == 0
    torch.testing.assert_close(output.loss.cpu(), torch.full((4,), math.log(2.0)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("family", ["sd15", "sd3"])
def test_half_precision_is_near_single(start, cosine, family):
    single, half = (start(FULL | {"train.mixed_precision": p}, family).step() for p in ("no", "bf16"))
    assert half[0] == pytest.approx(single[0], rel=5e-3)
    assert cosine(single[1], half[1]) > 0.99


def test_channels_last_changes_nothing_that_matters(start, same_step):
    plain = start(FULL).step()
    started = start(FULL)
    started.learner.policy.network.to(memory_format=torch.channels_last)
    started.learner.reference.denoiser.network.to(memory_format=torch.channels_last)
    same_step(plain, started.step())


BACKENDS = ["FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_attentions_agree_with_plain_arithmetic(start, same_step, backend):
    """SD3's joint attention, whose heads have 8 numbers here, which every kernel takes; forward and backward."""
    started = start(FULL, "sd3")
    with sdpa_kernel(SDPBackend.MATH):
        plain = started.step()
    try:
        with sdpa_kernel(getattr(SDPBackend, backend)):
            fast = started.step()
    except RuntimeError as error:
        pytest.skip(f"{backend}: {error}")
    same_step(plain, fast)
