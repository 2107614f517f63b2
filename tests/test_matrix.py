"""Every method on every family, full and LoRA: two updates, finite, and the right weights changed."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from tiny import PIPELINES
from tiny_steps import draws, make, pair_batch

from diffpo.denoisers import DENOISERS
from diffpo.denoisers.load import find_base
from diffpo.denoisers.tuning import MODELS
from diffpo.methods import METHODS
from diffpo.step import preference_step

EXCLUSIONS: dict[tuple[str, str], str] = {}
"""(method, pipeline): the reason why they do not go together."""

UNHEARD = "transformer_blocks.1.attn.add_q_proj"
"""What SD3's last block makes of the text goes nowhere, so these queries have no gradient."""

CASES = [case for case in product(METHODS, PIPELINES) if case not in EXCLUSIONS]


def test_the_count():
    """{dpo, sft} x {SD1.5 eps, SD2 v, SDXL, SD3 flow} at the least; an exclusion that excludes nothing fails."""
    assert len(CASES) == len(METHODS) * len(PIPELINES) - len(EXCLUSIONS)
    assert {"dpo", "sft"} <= set(METHODS) and {"sd15", "sd2", "sdxl", "sd3"} <= set(PIPELINES)
    assert len(CASES) >= 8 and set(MODELS) == {"full", "lora"}


def test_every_family_and_parametrisation_is_there(pipelines):
    bases = {name: find_base(str(pipelines(name))) for name in PIPELINES}
    assert {base.family for base in bases.values()} == set(DENOISERS.values())
    assert {make(pipelines(name), "full")[0].process.prediction for name in bases} == {"eps", "v", "flow"}


@pytest.mark.parametrize("tuning", MODELS)
@pytest.mark.parametrize(("method", "name"), CASES)
def test_two_updates(pipelines, method, name, tuning):
    chosen = METHODS[method]()
    policy, reference = make(pipelines(name), tuning)
    if not chosen.needs_reference:
        reference = None
    trained = {key: p for key, p in policy.network.named_parameters() if p.requires_grad}
    before = {key: value.clone() for key, value in policy.network.state_dict().items()}
    frozen = reference and {k: v.clone() for k, v in reference.denoiser.network.state_dict().items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-4, weight_decay=0.0)
    losses = []
    for epoch in range(2):
        batch = pair_batch(name, [0, 1, 2])
        output = preference_step(chosen, policy, reference, batch, draws(batch, epoch=epoch))
        (output.loss.sum() / chosen.count(batch).sum()).backward()
        assert output.loss.shape == (3,) and output.loss.isfinite().all()
        assert all(v.shape == (3,) and v.isfinite().all() for v in output.metrics.values())
        assert all(p.grad.isfinite().all() for p in trained.values() if p.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss.detach())
    assert not torch.equal(*losses)
    after = policy.network.state_dict()
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    heard = {key for key in trained if not key.startswith(UNHEARD)}
    assert changed == heard, "what is trained changed, all of it, and nothing else"
    if frozen and tuning == "full":
        assert all(torch.equal(v, frozen[k]) for k, v in reference.denoiser.network.state_dict().items())
