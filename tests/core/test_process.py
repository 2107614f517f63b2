"""Noise processes: by hand, against diffusers' schedulers, and the densities of training times."""

from __future__ import annotations

import math

import pytest
import torch

from diffpo.compat import ensure_torchvision

ensure_torchvision()

from diffusers import FlowMatchEulerDiscreteScheduler  # noqa: E402
from processes import DDPM, process, some  # noqa: E402

from diffpo.core.process import DiscreteProcess, FlowProcess, Time, draw  # noqa: E402
from diffpo.core.types import Rng  # noqa: E402
from diffpo.errors import ConfigError  # noqa: E402

PREDICTIONS = ("eps", "v", "flow")
SHAPE = (4, 1, 8, 8)


def times(prediction: str) -> torch.Tensor:
    """The ends among them."""
    return (
        torch.tensor([0.0, 1e-3, 0.3, 0.999, 1.0], dtype=torch.float64)
        if prediction == "flow"
        else torch.tensor([0, 1, 420, 998, 999])
    )


def many() -> Rng:
    return Rng(0, 0, torch.arange(10_000))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_split_of_the_exact_target_returns_the_truth(prediction):
    x0, eps, t = some(0), some(1), times(prediction)
    one = process(prediction)
    recovered = one.split(one.target(x0, eps, t), one.mix(x0, eps, t), one.alpha_sigma(t))
    torch.testing.assert_close(recovered, (x0, eps), rtol=0, atol=2e-12)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_split_of_any_prediction_agrees_with_z_and_with_the_prediction(prediction):
    """A network is never exact: what it implies must still mix to z, and have that prediction as its target."""
    z, answer, t = some(2), some(3), times(prediction)
    one = process(prediction)
    x0, eps = one.split(answer, z, one.alpha_sigma(t))
    torch.testing.assert_close(one.mix(x0, eps, t), z, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(one.target(x0, eps, t), answer, rtol=1e-10, atol=1e-10)


def test_targets_by_hand():
    """abar = 0.36, so alpha = 0.6 and sigma = 0.8; x0 = 5, eps = 10.

    z = 3 + 8 = 11; eps target 10; v = alpha eps - sigma x0 = 6 - 4 = 2; flow at t = 0.25: z = 6.25, target 5.
    """
    x0, eps, zero = torch.tensor([[5.0]]).double(), torch.tensor([[10.0]]).double(), torch.tensor([0])
    table = torch.tensor([0.36], dtype=torch.float64)
    one = {k: DiscreteProcess(prediction=k, alphas_cumprod=table) for k in ("eps", "v")}
    assert one["eps"].mix(x0, eps, zero).item() == pytest.approx(11)
    assert one["eps"].target(x0, eps, zero).item() == pytest.approx(10)
    assert one["v"].target(x0, eps, zero).item() == pytest.approx(2)
    quarter = torch.tensor([0.25], dtype=torch.float64)
    assert FlowProcess().mix(x0, eps, quarter).item() == 6.25
    assert FlowProcess().target(x0, eps, quarter).item() == 5


def test_discrete_agrees_with_diffusers():
    """In float64, where the order of cast and square root shows: the difference would be 1e-8, not zero."""
    x0, eps, t = some(4), some(5), times("eps")
    torch.testing.assert_close(process("eps").mix(x0, eps, t), DDPM.add_noise(x0, eps, t), rtol=1e-15, atol=1e-15)
    torch.testing.assert_close(process("v").target(x0, eps, t), DDPM.get_velocity(x0, eps, t), rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_agrees_with_diffusers(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    chosen = scheduler.timesteps[[0, 10, 500, 998, 999]]
    x0, eps = some(6), some(7)
    t = (chosen / 1000).double()
    theirs = scheduler.scale_noise(x0, chosen, eps)
    torch.testing.assert_close(process("flow").mix(x0, eps, t), theirs, rtol=0, atol=1e-6)


def test_the_shift_is_diffusers_shift():
    """Its table of 1000 shifted noise levels, from 1 down to 1/1000 before the shift."""
    plain, shifted = (FlowMatchEulerDiscreteScheduler(shift=s).sigmas.double() for s in (1.0, 3.0))
    torch.testing.assert_close(3 * plain / (1 + 2 * plain), shifted, rtol=1e-6, atol=1e-6)
    uniform = many().uniform("time")
    t = FlowProcess(shift=3.0, time=Time(density="uniform")).sample_time(many(), SHAPE)
    torch.testing.assert_close(t, 3 * uniform / (1 + 2 * uniform), rtol=1e-14, atol=0)


def test_alphas_are_cast_before_the_square_root():
    """alpha^2 gives the table's float32 number back to 1e-15; a float32 square root would be off by about 1e-8."""
    t = torch.arange(1000)
    alpha, sigma = process("eps").alpha_sigma(t)
    assert alpha.dtype == sigma.dtype == torch.float64
    torch.testing.assert_close(alpha.square(), DDPM.alphas_cumprod.double(), rtol=1e-15, atol=0)
    torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones(1000).double(), rtol=1e-15, atol=0)
    assert not torch.equal(alpha, DDPM.alphas_cumprod.sqrt().double())


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_computation_keeps_its_dtype(prediction):
    one, t = process(prediction), times(prediction)
    for dtype in (torch.float32, torch.bfloat16):
        x0, eps = some(0).to(dtype), some(1).to(dtype)
        assert one.mix(x0, eps, t).dtype == one.target(x0, eps, t).dtype == dtype


def test_discrete_times_are_uniform_integers():
    """Twenty bins of 500 expected each, five standard deviations are 109; and both ends are reached."""
    t = process("eps").sample_time(many(), SHAPE)
    assert t.dtype == torch.int64 and t.min() == 0 and t.max() == 999
    assert (torch.bincount(t // 50, minlength=20) - 500).abs().max() < 109
    assert torch.equal(t, (many().uniform("time") * 1000).long())


def test_flow_times_are_logit_normal():
    """The logit has mean 0 and standard deviation 1: half of all t in sigmoid(+-0.6745) = (0.3375, 0.6625)."""
    t = process("flow").sample_time(many(), SHAPE)
    assert t.dtype == torch.float64 and t.min() > 0 and t.max() < 1
    logit = torch.logit(t)
    assert logit.mean().item() == pytest.approx(0, abs=0.04) and logit.std().item() == pytest.approx(1, abs=0.04)
    assert ((t > 0.3375) & (t < 0.6625)).double().mean().item() == pytest.approx(0.5, abs=0.02)


def test_the_inverse_distribution_by_hand():
    """P(N < 1) = 0.8413447460685429: that number becomes sigmoid(mean + std); one half becomes sigmoid(mean)."""
    uniform = torch.tensor([0.5, 0.8413447460685429], dtype=torch.float64)
    t = draw(Time(mean=0.4, std=2.0), uniform, "logit_normal")
    assert t.tolist() == pytest.approx([1 / (1 + math.exp(-0.4)), 1 / (1 + math.exp(-2.4))], rel=1e-12)
    assert torch.equal(draw(Time(), uniform, "uniform"), uniform)


def test_low_and_high():
    """Quarter to half: 0.25 + 0.25 u, for either process."""
    time = Time(density="uniform", low=0.25, high=0.5)
    assert draw(time, torch.tensor([0.0, 0.5]), "uniform").tolist() == [0.25, 0.375]
    t = process("eps", time=time).sample_time(many(), SHAPE)
    assert (t.min(), t.max()) == (250, 499)
    t = process("flow", time=time).sample_time(many(), SHAPE)
    assert 0.25 <= t.min() < 0.2502 and 0.4998 < t.max() < 0.5


def test_the_config_may_change_density_and_shift():
    relative = process("eps", time=Time(density="logit_normal", mean=1.0)).sample_time(many(), SHAPE).double() / 1000
    assert relative.median().item() == pytest.approx(1 / (1 + math.exp(-1)), abs=0.02)
    own = process("flow", shift=3.0, time=Time(density="uniform", shift=1.0)).sample_time(many(), SHAPE)
    assert torch.equal(own, many().uniform("time")), "a shift of 1 is no shift, whatever the model's is"


def test_the_shift_by_hand():
    """t = 1/2, shift 3: 3/2 / (1 + 2/2) = 3/4. The median of the logit-normal density is 1/2."""
    t = process("flow", shift=3.0).sample_time(many(), SHAPE)
    assert t.median().item() == pytest.approx(0.75, abs=0.02)
    assert t.max() < 1


def by_area(shape) -> float:
    """A shift that grows with the number of tokens: 2 at 64, 5 at 256."""
    return 1 + shape[1] * shape[2] * shape[3] / 64


def test_the_shift_may_depend_on_the_shape():
    """t = 1/2 becomes s / (s + 1): 2/3 where s = 2, 5/6 where s = 5; the config's own shift is the same for all."""
    one = process("flow", shift=by_area, time=Time(density="uniform"))
    uniform = many().uniform("time")
    for shape, s in ((SHAPE, 2), ((4, 1, 16, 16), 5), ((4, 4, 8, 8), 5)):
        torch.testing.assert_close(one.sample_time(many(), shape), s * uniform / (1 + (s - 1) * uniform))
        points = one.path(torch.tensor([1.0], dtype=torch.float64), 2, "exact", shape).time
        assert points.flatten().tolist() == pytest.approx([0, s / (s + 1), 1])
    fixed = process("flow", shift=by_area, time=Time(density="uniform", shift=3.0))
    assert torch.equal(fixed.sample_time(many(), SHAPE), fixed.sample_time(many(), (4, 1, 16, 16)))


@pytest.mark.parametrize("density", ["uniform", "logit_normal"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_no_time_lies_outside_the_schedule(prediction, density):
    """Even with logits so large that their sigmoid rounds to one."""
    one = process(prediction, time=Time(density=density, mean=60.0, std=1.0))
    t = one.sample_time(Rng(0, 0, torch.arange(50)), SHAPE)
    alpha, sigma = one.alpha_sigma(t)
    assert alpha.isfinite().all() and sigma.max() <= 1
    assert one.relative(t).max() <= 1


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_times_depend_on_the_row_alone(prediction):
    one = process(prediction)
    together = one.sample_time(Rng(2, 1, torch.tensor([5, 6, 7])), SHAPE)
    assert torch.equal(one.sample_time(Rng(2, 1, torch.tensor([7, 5])), SHAPE), together[[2, 0]])


def test_relative_time():
    assert process("eps").relative(torch.tensor([0, 250, 999])).tolist() == pytest.approx([0, 0.25, 0.999])
    assert process("flow").relative(torch.tensor([0.2, 0.7])).tolist() == pytest.approx([0.2, 0.7])


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"low": 0.5, "high": 0.5}, "low < high"),
        ({"low": -0.1}, "low is -0.1; it must be at least 0 and at most 1"),
        ({"high": 1.5}, "high is 1.5"),
        ({"std": 0.0}, "above 0"),
        ({"shift": -1.0}, "above 0"),
    ],
)
def test_impossible_times_are_refused(wrong, word):
    with pytest.raises(ConfigError, match=word):
        Time(**wrong)
