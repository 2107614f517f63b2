"""The frozen reference: what it sees, what it keeps, and that asking it leaves no trace in the policy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import TUNED
from tiny_steps import ask, make, move, moved, pair_batch

from diffpo.models.base import Denoiser
from diffpo.models.load import load
from diffpo.models.reference import Reference, frozen_copy, initial_adapters
from diffpo.models.tuning import Full
from diffpo.models.unet import UNet

TUNINGS = ["full", "lora"]


@pytest.mark.parametrize(("name", "tuning"), TUNED)
def test_it_starts_equal_and_stays(pipelines, name, tuning):
    policy, reference = make(pipelines(name), tuning)
    batch = pair_batch(name, [0, 1])
    initial = ask(policy, batch)
    assert torch.equal(ask(reference, batch), initial)
    move(policy.network)
    assert torch.equal(ask(reference, batch), initial)
    assert not torch.allclose(ask(policy, batch), initial, rtol=1e-2)
    assert reference.process is policy.process


@pytest.mark.parametrize("tuning", TUNINGS)
def test_lora_has_no_second_copy_and_full_has(pipelines, tuning):
    policy, reference = make(pipelines("sd15"), tuning)
    assert (reference.denoiser.network is policy.network) == (tuning == "lora")
    shared = {p.data_ptr() for p in policy.network.parameters()} & {
        p.data_ptr() for p in reference.denoiser.network.parameters()
    }
    assert bool(shared) == (tuning == "lora")


@pytest.mark.parametrize("tuning", TUNINGS)
def test_it_answers_without_a_graph(pipelines, tuning):
    policy, reference = moved(pipelines("sd15"), tuning)
    batch = pair_batch("sd15", [0], torch.float64)
    with torch.enable_grad():
        answer = reference.predict(batch.latent.chosen, torch.tensor([500]), batch.cond.chosen)
    assert not answer.requires_grad
    assert policy.predict(batch.latent.chosen, torch.tensor([500]), batch.cond.chosen).requires_grad


@pytest.mark.parametrize(("name", "tuning"), TUNED)
def test_asking_it_leaves_no_trace(pipelines, name, tuning):
    """peft's own `disable_adapters` would flip requires_grad: an optimizer or a sharded module loses some."""
    policy, reference = moved(pipelines(name), tuning)
    batch = pair_batch(name, [0], torch.float64)
    flags = {k: p.requires_grad for k, p in policy.network.named_parameters()}
    training, before = policy.network.training, ask(policy, batch)
    ask(reference, batch)
    assert {k: p.requires_grad for k, p in policy.network.named_parameters()} == flags
    assert any(flags.values()) and policy.network.training == training
    assert torch.equal(ask(policy, batch), before)


def test_a_copy_is_made_where_the_policy_lies(pipelines):
    """Not in host memory: here on another device than that, the one without numbers."""
    tuning = Full(path=str(pipelines("sd15")))
    policy, reference = load(tuning, torch.float32, True, device="meta", autocast=torch.bfloat16)
    for denoiser in (policy, reference.denoiser):
        assert {x.device.type for x in (*denoiser.network.parameters(), *denoiser.network.buffers())} == {"meta"}


def test_adapters_come_back_after_an_error(pipelines):
    policy, reference = moved(pipelines("sd15"), "lora")
    batch = pair_batch("sd15", [0], torch.float64)
    before = ask(policy, batch)

    def stumble(*_):
        raise RuntimeError("out of memory, say")

    handle = policy.network.mid_block.register_forward_hook(stumble)
    with pytest.raises(RuntimeError, match="out of memory, say"):
        ask(reference, batch)
    handle.remove()
    assert torch.equal(ask(policy, batch), before)
    assert not torch.equal(ask(reference, batch), before)


def test_switching_may_be_nested(pipelines):
    policy, reference = moved(pipelines("sd15"), "lora")
    batch = pair_batch("sd15", [0], torch.float64)
    before, initial = ask(policy, batch), ask(reference, batch)
    with initial_adapters(policy.network):
        ask(reference, batch)
        assert torch.equal(ask(policy, batch), initial), "the inner one must not switch the outer one off"
    assert torch.equal(ask(policy, batch), before)


def test_a_network_without_adapters_is_left_alone(pipelines):
    policy, _ = make(pipelines("sd15"), "full")
    batch = pair_batch("sd15", [0])
    expected = ask(policy, batch)
    with initial_adapters(policy.network):
        assert torch.equal(ask(policy, batch), expected)


class Personal(UNet):
    """A family that listens to the user: it adds their states to its answer."""

    def predict(self, z, t, cond):
        answer = self.answer(z, t, cond)
        return answer if cond.user is None else answer + cond.user.mean()


def test_it_never_sees_the_user(pipelines):
    base, _ = make(pipelines("sd15"), "full")
    policy: Denoiser = Personal(base.network, base.process)
    reference = frozen_copy(policy, torch.float32)
    batch, t = pair_batch("sd15", [0, 1]), torch.tensor([10, 700])
    nobody = batch.cond.chosen
    somebody = replace(nobody, user=torch.ones(2, 3, 24))
    answers = {
        (who, told): asked.predict(batch.latent.chosen, t, cond).detach()
        for who, asked in (("policy", policy), ("reference", reference), ("bare", Reference(policy)))
        for told, cond in (("user", somebody), ("no user", nobody))
    }
    assert not torch.equal(answers["policy", "user"], answers["policy", "no user"])
    for who in ("reference", "bare"):
        assert torch.equal(answers[who, "user"], answers["policy", "no user"])
    assert somebody.user is not None, "the batch's own condition is not touched"


def test_a_frozen_copy_is_frozen(pipelines):
    policy, _ = make(pipelines("sd3"), "full")
    policy.network.train()
    network = frozen_copy(policy, torch.bfloat16).denoiser.network
    assert not network.training and policy.network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert all(p.requires_grad for p in policy.network.parameters())
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in policy.network.parameters()} == {torch.float32}
