"""CLIP score: its presets, its ways of loading, its scales."""

import json
import shutil

import pytest
import torch
from PIL import Image
from tiny_clips import ARCHITECTURE, HPS, golden, write_open_clip, write_pickscore

from diffpo.errors import UserError
from diffpo.scorers import Clip, HPSv2, PickScore


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_pickscore(tmp_path_factory.mktemp("clip"))


def test_a_folder_of_transformers_is_what_pickscore_computes(model):
    images, prompts, expected = golden("pickscore")
    scores = Clip(model=str(model), device="cpu", scale="logit").score(images, prompts)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=0)


def test_scales_by_hand(model):
    """cos; 100 cos; 2.5 max(cos, 0)."""
    images, _, _ = golden("pickscore")
    prompts = ["a", "b", "c", "d", "e", "f"]
    cosine, percent, clipscore = (
        Clip(model=str(model), device="cpu", scale=scale).score(images, prompts)
        for scale in ("cosine", "percent", "clipscore")
    )
    torch.testing.assert_close(percent, 100 * cosine)
    torch.testing.assert_close(clipscore, 2.5 * cosine.clamp(min=0))


def test_a_prefix_goes_before_the_prompt(model):
    images, _, _ = golden("pickscore")
    plain, prefixed = Clip(model=str(model), device="cpu"), Clip(model=str(model), device="cpu", prefix="A photo of ")
    assert torch.equal(prefixed.score(images[:1], ["cats"]), plain.score(images[:1], ["A photo of cats"]))
    assert prefixed.provenance == plain.provenance | {"prefix": "A photo of "}


def test_a_folder_and_a_file_of_open_clip(tmp_path):
    """With HPS's preprocessing both are what HPS computes: so is the preset diffusion-dpo."""
    images, prompts, expected = golden("hpsv2")
    folder = write_open_clip(tmp_path / "open_clip")
    for options in ({"model": str(folder)}, {"model": str(HPS), "architecture": str(ARCHITECTURE)}):
        padded = Clip(**options, preprocessing="longest-side", device="cpu")
        torch.testing.assert_close(padded.score(images, prompts), expected, rtol=1e-4, atol=0)
        own = Clip(**options, device="cpu")
        assert own.provenance["preprocessing"].startswith("open_clip")
        assert (own.score(images[1:2], prompts[1:2]) - expected[1:2]).abs() > 1e-4, "320 x 200 is cropped"


@pytest.mark.parametrize(
    ("preset", "names"),
    [
        ("vit-l-14-openai", r"openai/clip-vit-large-patch14.*config\.json"),
        ("vit-h-14-laion2b", r"laion/CLIP-ViT-H-14-laion2B-s32B-b79K.*open_clip_config\.json"),
        ("diffusion-dpo", r"laion/CLIP-ViT-H-14-laion2B-s32B-b79K.*open_clip_config\.json"),
        ("ViT-B-32/laion2b_s34b_b79k", r"laion/CLIP-ViT-B-32-laion2B-s34B-b79K.*config\.json"),
        ("owner/name", r"owner/name.*config\.json"),
    ],
)
def test_without_network_the_message_names_repository_and_file(preset, names):
    with pytest.raises(UserError, match=names):
        _ = Clip(model=preset).provenance


def test_a_file_says_its_architecture():
    with pytest.raises(UserError, match=r"HPS_tiny\.pt holds a CLIP in open_clip's layout"):
        _ = Clip(model=str(HPS)).provenance
    with pytest.raises(UserError, match="say its architecture"):
        _ = Clip(model=str(HPS), library="open_clip").provenance


def test_a_file_of_transformers_with_its_configuration(model):
    images, prompts, expected = golden("pickscore")
    scorer = PickScore(path=str(model / "model.safetensors"), device="cpu")
    torch.testing.assert_close(scorer.score(images, prompts), expected, rtol=1e-4, atol=0)
    assert scorer.provenance["architecture"].startswith("blake2b:")


def test_an_hps_file_is_no_pickscore():
    with pytest.raises(UserError, match=r"HPS_tiny\.pt holds a CLIP in open_clip's layout, as HPS has.*PickScore"):
        _ = PickScore(path=str(HPS)).provenance


def test_a_network_of_diffusers_is_no_clip(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    (tmp_path / "preprocessor_config.json").write_text("{}")
    for scorer in (PickScore(path=str(tmp_path), device="cpu"), Clip(model=str(tmp_path), device="cpu")):
        with pytest.raises(UserError, match=r"is a UNet2DConditionModel of diffusers, which is not (PickScore|a CLIP)"):
            scorer.score([Image.new("RGB", (8, 8))], ["x"])


def test_a_pickscore_is_no_hps(model):
    with pytest.raises(UserError, match="holds a CLIP in the layout of transformers, as PickScore has"):
        HPSv2(path=str(model), architecture=str(ARCHITECTURE), device="cpu").score([Image.new("RGB", (8, 8))], ["x"])


def test_padding_is_for_open_clip(model):
    with pytest.raises(UserError, match="preprocessing=longest-side is for models of open_clip"):
        _ = Clip(model=str(model), preprocessing="longest-side").provenance


def test_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match=r"neither open_clip_config\.json nor config\.json"):
        _ = Clip(model=str(tmp_path)).provenance


def test_a_torch_file_in_a_folder_of_transformers(model, tmp_path):
    """As older repositories have it: read with weights_only."""
    from safetensors.torch import load_file

    images, prompts, expected = golden("pickscore")
    shutil.copytree(model, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    torch.save(load_file(model / "model.safetensors"), tmp_path / "pytorch_model.bin")
    scores = PickScore(path=str(tmp_path), device="cpu").score(images[:2], prompts[:2])
    torch.testing.assert_close(scores, expected[:2], rtol=1e-4, atol=0)
