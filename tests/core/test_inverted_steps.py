"""Whole steps on inverted images, with tiny networks of the real classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_steps import draws, make, move, moved, pair_batch

from diffpo.core.inversion import Inversion
from diffpo.core.step import preference_step
from diffpo.methods import METHODS

INPO, SMPO = METHODS["inpo"](beta=50.0), METHODS["smpo"](beta=50.0)
BATCHES = [
    *(("sd15", method, landing) for method in (INPO, SMPO) for landing in ("exact", "released")),
    *((name, method, "exact") for method in (INPO, SMPO) for name in ("sd2", "sdxl", "sd3")),
]


@pytest.mark.parametrize(("name", "method", "landing"), BATCHES)
def test_a_batch_is_its_rows(pipelines, name, method, landing):
    """Eight pairs with eight times and soft labels give what eight batches of one give: loss, every metric."""
    method = replace(method, inversion=replace(method.inversion, landing=landing, eta=0.1))
    models, rows = moved(pipelines(name)), [3, 14, 15, 92, 65, 35, 89, 79]
    preference = torch.linspace(0.2, 1, 8, dtype=torch.float64)
    batch = replace(pair_batch(name, rows, torch.float64), preference=preference)
    with torch.no_grad():
        together = preference_step(method, *models, batch, draws(batch))
        assert len(together.metrics["time"].unique()) == 8
        for i, row in enumerate(rows):
            one = replace(pair_batch(name, [row], torch.float64), preference=preference[i : i + 1])
            alone = preference_step(method, *models, one, draws(one))
            torch.testing.assert_close(alone.loss, together.loss[i : i + 1], rtol=1e-9, atol=1e-9)
            for key, value in alone.metrics.items():
                torch.testing.assert_close(value, together.metrics[key][i : i + 1], rtol=1e-9, atol=1e-9, msg=key)


class Counted:
    """A denoiser, and how many rows it was asked."""

    def __init__(self, denoiser):
        self.denoiser, self.process, self.rows = denoiser, denoiser.process, 0

    def predict(self, z, t, cond):
        self.rows += len(z)
        return self.denoiser.predict(z, t, cond)

    def lockstep(self, n):
        return self.denoiser.lockstep(n)


@pytest.mark.parametrize("method", ["inpo", "mapo"])
@pytest.mark.parametrize("asked", ["policy", "reference"])
def test_who_inverts(pipelines, method, asked):
    """The one that is named; both are asked once more, about the result."""
    chosen = METHODS[method](inversion=Inversion(invert_with=asked))
    policy, reference = (Counted(x) for x in moved(pipelines("sd15")))
    batch = pair_batch("sd15", [0, 1, 2], torch.float64)
    preference_step(chosen, policy, reference if chosen.needs_reference else None, batch, draws(batch))
    t = policy.process.sample_time(draws(batch), batch.shape)
    steps = 2 * ((t + 99) // 100).clamp(min=1).sum().item()
    assert policy.rows == 6 + steps * (asked == "policy")
    assert reference.rows == 6 * chosen.needs_reference + steps * (asked == "reference")


def test_the_inverting_network_matters(pipelines):
    """A policy that moved walks elsewhere than its reference."""
    models, batch = moved(pipelines("sd15")), pair_batch("sd15", [0, 1, 2], torch.float64)
    results = [
        preference_step(replace(INPO, inversion=Inversion(invert_with=who)), *models, batch, draws(batch)).metrics
        for who in ("policy", "reference")
    ]
    assert not torch.isclose(*(x["error/reference_chosen"] for x in results), rtol=1e-4).any()


def test_no_gradient_flows_through_the_inversion(pipelines):
    """Latents and targets are constants of the loss: its gradient is that of the same noised latents, given."""
    policy, reference = moved(pipelines("sd15"))
    batch = pair_batch("sd15", [0, 1], torch.float64)
    rng = draws(batch)
    noised = INPO.add_noise(policy, reference, batch, policy.process.sample_time(rng, batch.shape), rng)
    assert not any(x.requires_grad for side in noised for x in (side.z, side.target))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_autocast_keeps_every_gradient(pipelines, tuning):
    """The policy is asked without gradient first, and again with: autocast must not keep the casts of the first."""
    results = {}
    for enabled in (False, True):
        policy, reference = make(pipelines("sd15"), tuning)
        move(policy.network)
        batch = pair_batch("sd15", [0, 1])
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            preference_step(INPO, policy, reference, batch, draws(batch)).loss.sum().backward()
        trained = [p for p in policy.network.parameters() if p.requires_grad]
        assert all(p.grad is not None for p in trained)
        results[enabled] = torch.cat([p.grad.flatten() for p in trained])
    assert torch.cosine_similarity(results[False], results[True], dim=0) > 0.95
