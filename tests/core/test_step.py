"""One training step on tiny real networks of every family: identities that hold whatever the weights are."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny import PIPELINES, TUNED
from tiny_steps import draws, make, move, moved, near, pair_batch, swapped

from diffpo.core.step import denoise, preference_step
from diffpo.core.types import Condition, Pair, StepOutput
from diffpo.methods import METHODS

DPO = METHODS["dpo"](beta=50.0)
SFT = METHODS["sft"]()


def gradients(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in network.named_parameters() if p.requires_grad}


def step(models, batch, method=DPO, **more) -> StepOutput:
    return preference_step(method, *models, batch, draws(batch), **more)


MORE = {"sd15": ["bfloat16", "float64"], "sd3": ["bfloat16", "float64"]}
EQUAL = [(*tuned, dtype) for tuned in TUNED for dtype in ["float32", "autocast", *MORE.get(tuned[0], [])]]


@pytest.mark.parametrize(("name", "tuning", "precision"), EQUAL)
def test_equal_networks_give_exactly_log_2(pipelines, name, tuning, precision):
    """Policy == reference: not about log 2 but log 2, and no pair is won or lost. Beta would enlarge any rounding."""
    dtype = torch.float32 if precision == "autocast" else getattr(torch, precision)
    half = torch.bfloat16 if precision == "autocast" else None
    models, batch = make(pipelines(name), tuning, dtype, autocast=half), pair_batch(name, [0, 1, 2], dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        output = step(models, batch, METHODS["dpo"](beta=5000.0))
    accumulated = torch.promote_types(dtype, torch.float32)
    assert torch.equal(output.loss, torch.full((3,), math.log(2), dtype=accumulated))
    assert output.metrics["rewards/accuracies"].tolist() == [0.5] * 3
    assert output.metrics["rewards/margins"].abs().max() == 0
    assert output.metrics["error/chosen"].min() > 0.1, "the networks were asked something"


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_network_that_moved_is_judged(pipelines, tuning):
    """What the identity above would also say if policy and reference were one object."""
    output = step(moved(pipelines("sd15"), tuning), pair_batch("sd15", [0, 1, 2], torch.float64))
    assert output.metrics["rewards/margins"].abs().min() > 1e-4
    assert not torch.equal(output.metrics["error/chosen"], output.metrics["error/reference_chosen"])


@pytest.mark.parametrize("name", PIPELINES)
def test_swapping_the_pair_negates_u(pipelines, name):
    """u -> -u, so loss(-u) - loss(u) = log(1 + e^u) - log(1 + e^-u) = u."""
    models, batch = moved(pipelines(name)), pair_batch(name, [0, 1, 2], torch.float64)
    there, back = step(models, batch), step(models, swapped(batch))
    u = there.metrics["rewards/margins"]
    torch.testing.assert_close(back.metrics["rewards/margins"], -u, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(back.loss - there.loss, u, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(back.metrics["rewards/chosen"], there.metrics["rewards/rejected"], rtol=1e-9, atol=1e-12)


def test_opposite_pairs_do_not_cancel(pipelines):
    """A pair and its mirror image have u and -u: the mean *loss* is above log 2, the loss of the mean u is log 2.

    By convexity: 1/2 [log(1 + e^-u) + log(1 + e^u)] > log 2 for u != 0.
    """
    models, one = moved(pipelines("sd15")), pair_batch("sd15", [4], torch.float64)
    two, mirror = [replace(x, index=torch.tensor([4, 4])) for x in (one, swapped(one))]
    latent = Pair(*(torch.cat(x) for x in zip(two.latent, mirror.latent, strict=True)))
    cond = Pair(*(Condition.cat([a, b]) for a, b in zip(two.cond, mirror.cond, strict=True)))
    both = replace(two, latent=latent, cond=cond, preference=torch.ones(2))
    output = step(models, both, METHODS["dpo"](beta=500.0))
    u = output.metrics["rewards/margins"]
    assert u[0].abs() > 0.01
    assert u.sum().item() == pytest.approx(0, abs=1e-9)
    expected = [math.log1p(math.exp(-u[0])), math.log1p(math.exp(u[0]))]
    assert output.loss.tolist() == pytest.approx(expected, rel=1e-9)
    assert output.loss.mean() > math.log(2) + 1e-6


@pytest.mark.parametrize("name", PIPELINES)
def test_a_small_update_against_the_gradient_lowers_the_loss(pipelines, name):
    policy, reference = moved(pipelines(name))
    batch = pair_batch(name, [0, 1], torch.float64)
    before = step((policy, reference), batch).loss.sum()
    before.backward()
    slope = sum(g.square().sum() for g in gradients(policy.network).values())
    rate = 1e-4 * before.detach() / slope
    with torch.no_grad():
        for parameter in policy.network.parameters():
            if parameter.requires_grad:
                parameter -= rate * parameter.grad
    after = step((policy, reference), batch).loss.sum()
    assert (before - after).item() == pytest.approx((rate * slope).item(), rel=0.1)


@pytest.mark.parametrize("name", PIPELINES)
def test_two_forwards_are_one_forward(pipelines, name):
    policy, reference = moved(pipelines(name))
    batch = pair_batch(name, [0, 1, 2], torch.float64)
    results = []
    for split in (False, True):
        policy.network.zero_grad()
        output = step((policy, reference), batch, split_forward=split)
        output.loss.sum().backward()
        results.append((output, {k: g.clone() for k, g in gradients(policy.network).items()}))
    (one, single), (two, double) = results
    torch.testing.assert_close(two.loss, one.loss, **near(name, 1e-12, 1e-12))
    torch.testing.assert_close(dict(two.metrics), dict(one.metrics), **near(name, 1e-10, 1e-12))
    for key, gradient in single.items():
        torch.testing.assert_close(double[key], gradient, **near(name, 1e-9, 1e-11))


def test_split_forward_asks_one_row_at_a_time(pipelines):
    policy, reference = make(pipelines("sd15"), "full")
    sizes = []
    policy.network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    for split in (False, True):
        step((policy, reference), pair_batch("sd15", [0]), split_forward=split)
    assert sizes == [2, 1, 1]


@pytest.mark.parametrize("name", PIPELINES)
def test_a_batch_is_its_rows(pipelines, name):
    """Eight pairs with eight times give what eight batches of one give: loss, every metric."""
    models, rows = moved(pipelines(name)), [3, 14, 15, 92, 65, 35, 89, 79]
    batch = pair_batch(name, rows, torch.float64)
    together = step(models, batch)
    assert len(together.metrics["time"].unique()) == 8
    for i, row in enumerate(rows):
        alone = step(models, pair_batch(name, [row], torch.float64))
        torch.testing.assert_close(alone.loss, together.loss[i : i + 1], **near(name, 1e-12, 1e-12))
        for key, value in alone.metrics.items():
            torch.testing.assert_close(value, together.metrics[key][i : i + 1], **near(name, 1e-10, 1e-12), msg=key)


@pytest.mark.parametrize("name", PIPELINES)
def test_sft_never_touches_the_rejected_side(pipelines, name):
    """There is none: no latents, no condition. And no reference."""
    policy, _ = make(pipelines(name), "full", torch.float64)
    batch = pair_batch(name, [0, 1, 2], torch.float64)
    one_sided = replace(batch, latent=Pair(batch.latent.chosen, None), cond=Pair(batch.cond.chosen, None))
    output = step((policy, None), one_sided, SFT)
    assert not SFT.needs_reference and SFT.sides == ("chosen",)
    assert set(output.metrics) == {"error/chosen", "time"}
    t, rng = policy.process.sample_time(draws(batch), batch.shape), draws(batch)
    eps = rng.normal(batch.latent.chosen.shape[1:], "noise").double()
    prediction = policy.predict(policy.process.mix(batch.latent.chosen, eps, t), t, batch.cond.chosen)
    target = policy.process.target(batch.latent.chosen, eps, t)
    assert torch.equal(output.loss, (prediction - target).square().mean((1, 3, 4)).mean(1))
    output.loss.sum().backward()
    assert any(g.abs().max() > 0 for g in gradients(policy.network).values())


def test_sft_and_dpo_see_the_same_noise(pipelines):
    """So a baseline differs from what it is compared with in its loss alone."""
    models, batch = make(pipelines("sd15"), "full", torch.float64), pair_batch("sd15", [5, 6], torch.float64)
    ours = step((models[0], None), replace(batch, latent=Pair(batch.latent.chosen, None)), SFT).metrics
    theirs = step(models, batch).metrics["error/chosen"]
    torch.testing.assert_close(ours["error/chosen"], theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", PIPELINES)
def test_noise_and_time_are_shared_within_the_pair_only(pipelines, name):
    """Two sides with equal latents and captions have equal errors; two rows with equal ones have not."""
    models, batch = moved(pipelines(name)), pair_batch(name, [0], torch.float64)
    latent, cond = torch.cat([batch.latent.chosen] * 2), Condition.cat([batch.cond.chosen] * 2)
    equal = replace(batch, latent=Pair(latent, latent), cond=Pair(cond, cond), index=torch.tensor([0, 1]))
    equal = replace(equal, preference=torch.ones(2, dtype=torch.float64))
    metrics = step(models, equal).metrics
    torch.testing.assert_close(metrics["error/chosen"], metrics["error/rejected"], **near(name, 1e-12, 0.0))
    assert not torch.isclose(*metrics["error/chosen"], rtol=1e-3)
    assert metrics["rewards/margins"].abs().max() <= near(name, 0.0, 1e-10)["atol"]


def test_the_time_is_logged_and_drawn_from_the_row(pipelines):
    models, batch = make(pipelines("sd15"), "full"), pair_batch("sd15", [8, 9])
    t = models[0].process.sample_time(draws(batch), batch.shape)
    assert torch.equal(step(models, batch).metrics["time"], t / 1000)
    other = preference_step(DPO, *models, batch, draws(batch, epoch=1))
    assert not torch.equal(other.metrics["time"], t / 1000)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_autocast_keeps_every_gradient(pipelines, tuning):
    """The reference's forward without grad must leave nothing in autocast's cache that the policy's would pick up."""
    results = {}
    for enabled in (False, True):
        policy, reference = make(pipelines("sd15"), tuning)
        move(policy.network)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            step((policy, reference), pair_batch("sd15", [0, 1])).loss.sum().backward()
        results[enabled] = torch.cat([g.flatten() for g in gradients(policy.network).values()])
    assert results[True].isfinite().all()
    cosine = torch.cosine_similarity(results[False], results[True], dim=0)
    assert cosine > 0.95, f"half precision turned the gradient: cosine {cosine:.3f}"


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_only_the_policy_learns(pipelines, tuning):
    policy, reference = moved(pipelines("sdxl"), tuning)
    step((policy, reference), pair_batch("sdxl", [0, 1], torch.float64)).loss.sum().backward()
    silent = [name for name, g in gradients(policy.network).items() if g is None or not 0 < g.norm() < torch.inf]
    assert not silent, f"trained, but without a gradient: {silent}"
    frozen = [p for n in (policy.network, reference.denoiser.network) for p in n.parameters() if not p.requires_grad]
    assert frozen and all(p.grad is None for p in frozen)


def test_metrics_are_detached(pipelines):
    output = step(moved(pipelines("sd15")), pair_batch("sd15", [0], torch.float64))
    assert output.loss.requires_grad
    assert not any(value.requires_grad for value in output.metrics.values())


def test_each_side_is_asked_with_its_own_caption(pipelines):
    """Dual captions: changing the rejected caption changes the rejected error alone."""
    models, batch = moved(pipelines("sd3")), pair_batch("sd3", [0, 1], torch.float64)
    other = pair_batch("sd3", [7, 8], torch.float64).cond
    before = step(models, batch).metrics
    after = step(models, replace(batch, cond=Pair(batch.cond.chosen, other.rejected))).metrics
    torch.testing.assert_close(after["error/chosen"], before["error/chosen"], rtol=1e-12, atol=0)
    assert not torch.isclose(after["error/rejected"], before["error/rejected"], rtol=1e-6).any()


def test_denoise_leaves_out_a_side_that_is_none(pipelines):
    policy, _ = make(pipelines("sd15"), "full")
    batch = pair_batch("sd15", [0, 1])
    rng = draws(batch)
    noised = SFT.add_noise(policy, None, batch, policy.process.sample_time(rng, batch.shape), rng)
    both = denoise(policy, noised, batch.cond)
    one = denoise(policy, Pair(None, noised.rejected), batch.cond)
    assert one.chosen is None
    torch.testing.assert_close(one.rejected.prediction, both.rejected.prediction, rtol=1e-4, atol=1e-5)
