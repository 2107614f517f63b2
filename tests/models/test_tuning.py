"""Full and LoRA tuning: what is trained, in which dtype, how an adapter is continued, and what an export holds."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file
from tiny import PIPELINES, open_plain
from tiny_steps import FACTS, ask, is_unheard, make, move, pair_batch

from diffpo.config.blocks import make as build
from diffpo.errors import UserError
from diffpo.models import FAMILIES
from diffpo.models.base import LORA_FILE
from diffpo.models.bases import find_base
from diffpo.models.finding import find_lora
from diffpo.models.peft_folder import CONFIG_FILE, TENSORS_FILE
from diffpo.models.tunings import MODELS
from diffpo.training.checkpoint import trained_weights


def save(policy, folder, tuning: str, out, **more):
    """Export as a run does."""
    MODELS[tuning](path=str(folder), **more).save(
        out, find_base(str(folder)), policy.network, trained_weights(policy.network)
    )


def trained(network) -> list[str]:
    return [name for name, p in network.named_parameters() if p.requires_grad]


@pytest.mark.parametrize("name", PIPELINES)
def test_full_trains_everything(pipelines, name):
    network = make(pipelines(name), "full")[0].network
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert all(is_unheard(name, key) for key in frozen)


@pytest.mark.filterwarnings("error:You have passed exclude_modules")
@pytest.mark.parametrize("name", PIPELINES)
def test_lora_trains_two_factors_of_every_target(pipelines, name):
    """Each of them of the rank asked for, the second at zero; every attention projection of the family is adapted."""
    network = make(pipelines(name), "lora", rank=3)[0].network
    names = trained(network)
    family = find_base(str(pipelines(name))).family
    ends = tuple(family.lora_targets)
    plain = make(pipelines(name), "full")[0].network
    unheard = family.unheard(plain.config)
    expected = {m for m, _ in plain.named_modules() if m.endswith(ends) and not m.startswith(unheard)}
    assert expected and {re.sub(r"\.lora_[AB]\.default\.weight$", "", n) for n in names} == expected
    assert {end for end in ends if any(m.endswith(end) for m in expected)} == set(ends)
    assert len(names) == 2 * len(expected)
    for key, parameter in network.named_parameters():
        if ".lora_A." in key:
            assert parameter.shape[0] == 3 and parameter.abs().max() > 0
        if ".lora_B." in key:
            assert parameter.shape[1] == 3 and parameter.abs().max() == 0


def test_targets_and_rank_of_the_config(pipelines):
    network = make(pipelines("sd15"), "lora", targets=("to_k",), rank=1)[0].network
    assert all(".to_k.lora_" in name for name in trained(network)) and trained(network)


@pytest.mark.parametrize("name", PIPELINES)
def test_targets_that_fit_nothing(pipelines, name):
    with pytest.raises(UserError, match=r"model\.targets is to_nowhere, .*such as to_q, to_k, to_v"):
        make(pipelines(name), "lora", targets=("to_nowhere",))


def test_alpha_scales_the_adapter(pipelines):
    """Default alpha = rank: scale 1. alpha = 3 rank: what the adapter adds to a layer is three times as large."""
    batch, layers = pair_batch("sd15", [0]), []
    for alpha in (None, 6.0):
        policy, _ = make(pipelines("sd15"), "lora", alpha=alpha)
        move(policy.network)
        layer = policy.network.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
        x = batch.cond.chosen.text
        layers.append((layer(x) - layer.base_layer(x)).detach())
    assert layers[0].abs().max() > 0
    torch.testing.assert_close(layers[1], 3 * layers[0], rtol=1e-4, atol=1e-5)


def test_frozen_weights_may_have_another_dtype(pipelines):
    """`model.dtype`: the base in half, the adapter in what is trained."""
    policy, _ = make(pipelines("sd15"), "lora", torch.float32, dtype="bfloat16")
    dtypes = {(".lora_" in name, p.dtype) for name, p in policy.network.named_parameters()}
    assert dtypes == {(False, torch.bfloat16), (True, torch.float32)}
    policy, reference = make(pipelines("sd15"), "full", torch.float32, dtype="bfloat16")
    assert {p.dtype for p in policy.network.parameters()} == {torch.float32}
    assert {p.dtype for p in reference.denoiser.network.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_continued_adapter(pipelines, tmp_path, name):
    """The reference is the base *with* the adapter as it was, and stays so when the policy moves on."""
    first, _ = make(pipelines(name), "lora", rank=2, alpha=6.0)
    move(first.network, 0.1)
    save(first, pipelines(name), "lora", tmp_path / "final")
    batch = pair_batch(name, [0, 1])
    initial = ask(first, batch)
    policy, reference = make(pipelines(name), "lora", rank=2, lora=str(tmp_path))
    torch.testing.assert_close(ask(policy, batch), initial, rtol=1e-5, atol=1e-5)
    atol = 2e-6 if FACTS[name].strided else 0  # elsewhere to the bit
    torch.testing.assert_close(ask(reference, batch), ask(policy, batch), rtol=0, atol=atol)
    assert not torch.allclose(initial, ask(make(pipelines(name), "full")[0], batch), rtol=1e-2)
    assert trained(policy.network) == trained(first.network), "the same adapter; the frozen one is not trained"
    before = ask(reference, batch)
    move(policy.network, 0.1)
    assert torch.equal(ask(reference, batch), before)
    assert not torch.allclose(ask(policy, batch), before, rtol=1e-2)


@pytest.mark.parametrize("name", PIPELINES)
def test_an_exported_adapter_loads_in_plain_diffusers(pipelines, tmp_path, name):
    """Continued and moved on: the export holds the trained adapter alone, with its scale, and no pickle."""
    from peft import PeftModel

    first, _ = make(pipelines(name), "lora", rank=2, alpha=6.0)
    move(first.network, 0.1)
    save(first, pipelines(name), "lora", tmp_path / "first")
    policy, _ = make(pipelines(name), "lora", lora=str(tmp_path / "first"))
    move(policy.network, 0.1)
    save(policy, pipelines(name), "lora", tmp_path / "second")
    files = {path.name for path in (tmp_path / "second").iterdir()}
    assert files in ({LORA_FILE}, {CONFIG_FILE, TENSORS_FILE})
    tensors = tmp_path / "second" / next(file for file in files if file.endswith(".safetensors"))
    assert not any("reference" in key for key in load_file(tensors))
    pipeline = open_plain(pipelines(name))
    family = find_base(str(pipelines(name))).family
    network = pipeline.components[family.components[0]]
    if LORA_FILE in files:
        pipeline.load_lora_weights(tmp_path / "second")
    else:
        network = PeftModel.from_pretrained(network, tmp_path / "second").get_base_model()
    plain = family(network, policy.process)
    batch = pair_batch(name, [0, 1])
    torch.testing.assert_close(ask(plain, batch), ask(policy, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PIPELINES)
def test_an_exported_network_loads_in_plain_diffusers(pipelines, tmp_path, name):
    policy, _ = make(pipelines(name), "full")
    move(policy.network)
    save(policy, pipelines(name), "full", tmp_path)
    family = find_base(str(pipelines(name))).family
    assert {p.suffix for p in (tmp_path / family.components[0]).iterdir()} == {".json", ".safetensors"}
    plain = family(type(policy.network).from_pretrained(tmp_path / family.components[0]), policy.process)
    batch = pair_batch(name, [0, 1])
    assert torch.equal(ask(plain, batch), ask(policy, batch))


def test_an_adapter_of_another_family_fits_nothing(pipelines, tmp_path):
    """SD3's adapter on a UNet."""
    first, _ = make(pipelines("sd3"), "lora")
    save(first, pipelines("sd3"), "lora", tmp_path)
    with pytest.raises(UserError, match="does not fit a UNet2DConditionModel"):
        make(pipelines("sd15"), "lora", lora=str(tmp_path))


def test_an_adapter_that_is_not_there(pipelines, tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "nowhere"))):
        make(pipelines("sd15"), "lora", lora=str(tmp_path / "nowhere"))


def test_a_folder_without_an_adapter(pipelines, tmp_path):
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path))}.*{re.escape(LORA_FILE)}"):
        make(pipelines("sd15"), "lora", lora=str(tmp_path))


def test_an_adapter_is_found_in_a_file_a_folder_and_a_run(tmp_path):
    final = tmp_path / "run" / "final"
    final.mkdir(parents=True)
    (final / LORA_FILE).touch()
    for place in (tmp_path / "run", final, final / LORA_FILE):
        assert find_lora(str(place)).path == final / LORA_FILE


def test_a_user_adapter_is_no_lora(tmp_path):
    for name in ("user_adapter.safetensors", "embedder.safetensors"):
        (tmp_path / name).touch()
        with pytest.raises(UserError, match="is part of a user adapter"):
            find_lora(str(tmp_path / name))
    with pytest.raises(UserError, match="holds a user adapter and no LoRA"):
        find_lora(str(tmp_path))
    (tmp_path / "mine.safetensors").touch()
    assert find_lora(str(tmp_path)).path == tmp_path / "mine.safetensors"


def test_full_tuning_continues_no_adapter(pipelines):
    with pytest.raises(UserError, match="choose model=lora"):
        make(pipelines("sd15"), "full", lora="somewhere")


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_an_adapter_that_cannot_exist(wrong):
    with pytest.raises(ValueError, match="it must be at least"):
        MODELS["lora"](path="x", **wrong)


@pytest.mark.parametrize("tuning", MODELS)
def test_unknown_keys_are_refused(tuning):
    """Those of the times nested in them too."""
    assert build(MODELS[tuning], {"path": "x", "time": {"shift": 3}}, "model").time.shift == 3.0
    for wrong in ({"path": "x", "rnk": 4}, {"path": "x", "time": {"shfit": 3}}):
        with pytest.raises(UserError, match="unknown key"):
            build(MODELS[tuning], wrong, "model")


def test_every_family_names_its_pipelines_and_targets():
    import diffusers

    for family in FAMILIES.values():
        assert family.pipelines and family.lora_targets
        assert all(getattr(diffusers, name) for name in family.pipelines)
