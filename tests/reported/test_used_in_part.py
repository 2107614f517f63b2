"""What is given is used whole, or refused by name: adapters that change more, or are not as the settings say."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_steps import make, move

from diffpo.errors import UserError
from diffpo.models.base import LORA_FILE
from diffpo.models.bases import find_base
from diffpo.models.lora import LoRA


@pytest.fixture
def adapter(pipelines, tmp_path):
    """An adapter of rank 4, as a run exports it."""
    policy, _ = make(pipelines("sd15"), "lora", rank=4)
    move(policy.network)
    tuning = LoRA(path=str(pipelines("sd15")), rank=4)
    tuning.save(tmp_path, find_base(str(pipelines("sd15"))), policy.network, dict(policy.network.state_dict()))
    return tmp_path / LORA_FILE


def find(pipelines, file, **more):
    return LoRA(path=str(pipelines("sd15")), lora=str(file), **more).find()


def test_an_adapter_that_also_changes_the_text_encoder(pipelines, adapter):
    whole = load_file(adapter)
    text = {
        f"text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_{factor}.weight": torch.zeros(shape)
        for factor, shape in (("A", (4, 24)), ("B", (24, 4)))
    }
    save_file(whole | text, adapter)
    with pytest.raises(UserError, match=r"also changes text_encoder, which diffpo does not train: it would be dropped"):
        find(pipelines, adapter)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"rank": 8}, r"model\.rank is 8, but the adapter .* has rank 4;"),
        ({"alpha": 8.0}, r"model\.alpha is 8\.0, but the continued adapter .* has one of its own"),
        ({"targets": ("to_k",)}, r"model\.targets is \('to_k',\), but the continued adapter"),
    ],
)
def test_settings_beside_an_adapter_that_has_its_own(pipelines, adapter, setting, said):
    with pytest.raises(UserError, match=said):
        find(pipelines, adapter, **setting)


def test_the_same_rank_or_none_goes_on(pipelines, adapter):
    for setting in ({}, {"rank": 4}):
        find(pipelines, adapter, **setting)
    policy, _ = make(pipelines("sd15"), "lora", lora=str(adapter), rank=None)
    assert {p.shape[0] for name, p in policy.network.named_parameters() if ".lora_A.default" in name} == {4}


def test_an_adapter_with_layers_that_the_network_lacks(pipelines, adapter):
    whole = load_file(adapter)
    first = next(name for name in whole if name.endswith("lora_A.weight"))
    for factor in ("lora_A", "lora_B"):
        name = first.replace("lora_A", factor)
        whole[name.replace("down_blocks.1", "down_blocks.7")] = whole[name].clone()
    save_file(whole, adapter)
    with pytest.raises(UserError, match="does not fit a UNet2DConditionModel"):
        make(pipelines("sd15"), "lora", lora=str(adapter), rank=None)


def test_a_file_that_is_no_safetensors(pipelines, tmp_path):
    (tmp_path / LORA_FILE).write_bytes(b"no header")
    with pytest.raises(UserError, match="cannot be read"):
        find(pipelines, tmp_path)
