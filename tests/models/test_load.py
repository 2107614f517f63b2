"""From a path to a policy and its reference; and what a user is told when there is nothing to load."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tiny import PIPELINES, TUNED
from tiny_steps import FACTS, ask, draws, make, move, pair_batch

from diffpo.core.step import preference_step
from diffpo.errors import UserError
from diffpo.methods import METHODS
from diffpo.models import FAMILIES
from diffpo.models.bases import find_base
from diffpo.models.encoders import Encoders
from diffpo.models.load import load, set_attention
from diffpo.models.tuning import Full
from diffpo.models.tunings import MODELS


@pytest.fixture
def copy(pipelines, tmp_path):
    """A pipeline folder that may be damaged."""
    return shutil.copytree(pipelines("sd15"), tmp_path / "model")


@pytest.mark.parametrize(("name", "family"), [(name, facts.family) for name, facts in FACTS.items()])
def test_the_family_is_that_of_the_pipeline(pipelines, name, family):
    base = find_base(str(pipelines(name)))
    assert base.family is FAMILIES[family] and base.folder == pipelines(name)
    assert base.pipeline == base.index["_class_name"]
    policy, _ = make(pipelines(name), "full")
    assert type(policy) is base.family and type(policy.network) is base.network_class


def test_a_missing_folder():
    for path in ("/no/such/model", "./model", "models/of/mine", "model"):
        with pytest.raises(UserError, match=f"there is no {Path(path)}.*a diffusers model"):
            find_base(path)


def test_a_hub_id_without_a_network():
    """It says which file is missing, and how to give a local path. (Tests run with the Hub switched off.)"""
    with pytest.raises(UserError) as caught:
        find_base("somebody/no-such-model-of-theirs")
    message = str(caught.value)
    assert (
        "somebody/no-such-model-of-theirs" in message
        and "its model_index.json is neither in the local cache" in message
    )
    assert "give the path of a local folder that holds a diffusers model" in message


def test_a_vae_on_the_hub_without_a_network(pipelines):
    tuning = MODELS["full"](path=str(pipelines("sd15")), vae="somebody/no-such-vae")
    with pytest.raises(UserError, match=r"no folder somebody/no-such-vae here, .* its config\.json is neither"):
        Encoders(tuning, "cpu")


def test_a_folder_that_is_no_diffusers_model(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"no diffusers model: it has no model_index\.json"):
        find_base(str(tmp_path))


def test_a_family_that_is_not_supported(tmp_path):
    """The list of what is supported comes with it."""
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyPipeline"}))
    with pytest.raises(UserError, match="is a KandinskyPipeline, which diffpo does not train") as caught:
        find_base(str(tmp_path))
    supported = [name for family in FAMILIES.values() for name in family.pipelines]
    assert len(supported) >= 3 and all(name in str(caught.value) for name in supported)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "cannot load a UNet2DConditionModel from"),
        ("unet/config.json", r"unet/config\.json cannot be read"),
        ("scheduler/scheduler_config.json", "scheduler_config.json cannot be read"),
    ],
)
def test_a_model_with_a_file_missing(copy, missing, said):
    (copy / missing).unlink()
    with pytest.raises(UserError, match=said):
        make(copy, "full")


def test_a_broken_index(copy):
    (copy / "model_index.json").write_text("{")
    with pytest.raises(UserError, match=r"model_index\.json cannot be read"):
        find_base(str(copy))


def test_weights_cut_short(copy):
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:10_000])
    with pytest.raises(UserError, match="cannot load a UNet2DConditionModel"):
        make(copy, "full")


def test_no_reference_where_none_is_needed(pipelines):
    assert load(Full(path=str(pipelines("sd15"))), torch.float32, needs_reference=False)[1] is None


@pytest.mark.parametrize("name", PIPELINES)
def test_another_start_is_policy_and_reference(pipelines, tmp_path, name):
    """`model.denoiser`: the network's own folder, a pipeline's, or a run's; whichever way, the same weights."""
    tuned, old = make(pipelines(name), "full")
    move(tuned.network)
    component = find_base(str(pipelines(name))).component
    tuned.network.save_pretrained(tmp_path / "run" / "final" / component)
    batch = pair_batch(name, [0, 1])
    expected = ask(tuned, batch)
    assert not torch.allclose(ask(old, batch), expected, rtol=1e-2)
    places = {"run": "lora", "run/final": "full", f"run/final/{component}": "full"}
    for place, tuning in places.items():
        policy, reference = make(pipelines(name), tuning, denoiser=str(tmp_path / place))
        assert torch.equal(ask(policy, batch), expected) and torch.equal(ask(reference, batch), expected)


def test_a_start_that_is_not_there(pipelines, tmp_path):
    with pytest.raises(UserError, match=r"there is no .*nowhere"):
        make(pipelines("sd15"), "full", denoiser=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(("name", "tuning"), TUNED)
def test_gradient_checkpointing_changes_no_gradient(pipelines, name, tuning):
    batch, gradients = pair_batch(name, [0, 1], torch.float64), []
    for checkpointing in (False, True):
        policy, reference = make(pipelines(name), tuning, torch.float64, gradient_checkpointing=checkpointing)
        policy.network.train()
        move(policy.network)
        preference_step(METHODS["dpo"](beta=50.0), policy, reference, batch, draws(batch)).loss.sum().backward()
        gradients.append({k: p.grad for k, p in policy.network.named_parameters() if p.requires_grad})
        assert policy.network.is_gradient_checkpointing is checkpointing
    assert all(g is not None for g in gradients[1].values())
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-10, atol=1e-12, msg=key)


@pytest.mark.parametrize(("share", "calls"), [(0.0, 2), (0.5, 3), (1.0, 4)])
def test_a_share_of_the_blocks_is_recomputed(pipelines, share, calls):
    """SD3's two blocks: called once each, and those that are checkpointed once more in the backward pass."""
    policy, _ = make(pipelines("sd3"), "full", gradient_checkpointing=True, recomputed_share=share)
    seen = []
    for block in policy.regions():
        block.register_forward_pre_hook(lambda block, *_: seen.append(block))
    batch = pair_batch("sd3", [0], torch.float32)
    policy.predict(batch.latent.chosen, torch.tensor([0.5]), batch.cond.chosen).square().mean().backward()
    assert len(seen) == calls


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_native_attention_is_left_alone(pipelines, name):
    policy, _ = make(pipelines(name), "full")
    before = dict(policy.network.attn_processors)
    set_attention(policy.network, "native")
    assert dict(policy.network.attn_processors) == before


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3"])
def test_an_attention_name_that_nobody_knows(pipelines, name):
    with pytest.raises(UserError, match=r"model\.attention=flesh cannot be used here"):
        make(pipelines(name), "full", attention="flesh")


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3"])
def test_an_attention_name_that_changes_nothing(pipelines, name):
    """diffusers' dispatcher accepts it, and these networks never ask the dispatcher."""
    with pytest.raises(UserError, match=r"_native_math changes nothing for a .*; allowed are native, xformers"):
        make(pipelines(name), "full", attention="_native_math")


@pytest.mark.skipif(find_spec("xformers") is not None, reason="xformers is installed")
def test_xformers_that_is_not_installed(pipelines):
    with pytest.raises(UserError, match=r"model\.attention=xformers cannot be used here: .*xformers"):
        make(pipelines("sd15"), "full", attention="xformers")
