"""HPS against numbers of the official package, its preprocessing, and its ways of loading."""

import shutil
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_clips import ARCHITECTURE, HPS, golden, hps_state

from diffpo.compat import ensure_torchvision
from diffpo.errors import UserError
from diffpo.scorers import Clip, HPSv2, HPSv21

DOT = ([Image.new("RGB", (8, 8))], ["x"])


def tiny(path=HPS, **options) -> HPSv2:
    return HPSv2(path=str(path), architecture=str(ARCHITECTURE), device="cpu", **options)


@pytest.mark.parametrize("batch", [1, 4, 32])
def test_scores_are_those_of_the_official_package(batch):
    images, prompts, expected = golden("hpsv2")
    scores = tiny(batch=batch).score(images, prompts)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=0)


def test_the_scale_is_what_it_says():
    images, prompts, expected = golden("hpsv2")
    factor = hps_state()["logit_scale"].exp().item()
    for scale, times in (("percent", 100), ("logit", factor)):
        scorer = tiny(scale=scale)
        torch.testing.assert_close(scorer.score(images, prompts), times * expected, rtol=1e-4, atol=0)
        assert scorer.provenance["scale"] == scale


def test_half_precision_is_near_and_not_the_same():
    images, prompts, expected = golden("hpsv2")
    scores = tiny(dtype="bfloat16").score(images, prompts)
    assert scores.dtype == torch.float32
    assert 0 < (scores - expected).abs().max() < 0.03


def test_the_tokenizer_mends_what_open_clip_mends():
    image = golden("hpsv2")[0][0]
    odd, plain = "\u201ccaf\u00e9\u201d &amp;amp; dogs", '"caf\u00e9" & dogs'
    scores = tiny().score([image, image, image], [odd, plain, "dogs"])
    assert scores[0] == scores[1] != scores[2]


@pytest.mark.parametrize("size", [(512, 512), (1024, 768), (77, 134), (200, 150), (224, 224), (90, 224)])
def test_pixels_are_those_of_torchvision(size):
    """Its resize of a tensor, then padding on both sides; an image whose longest side fits is padded too."""
    ensure_torchvision()
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    from diffpo.scorers.pixels import pad_longest

    pixels = torch.randint(0, 256, (3, size[1], size[0]), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    height, width = (round(side * 224 / max(size)) for side in (size[1], size[0]))
    for antialias in (True, False):
        resized = F.resize(F.to_tensor(image), [height, width], InterpolationMode.BICUBIC, antialias=antialias)
        left, top = (224 - width) // 2, (224 - height) // 2
        expected = F.pad(resized, [left, top, 224 - width - left, 224 - height - top])
        assert torch.equal(pad_longest(image, 224, antialias=antialias), expected)


def test_a_line_of_an_image_is_no_empty_one():
    assert torch.isfinite(tiny().score([Image.new("RGB", (2000, 1), "red")], ["x"])).all()


def test_resizing_without_antialias_is_another_scorer():
    images, prompts, expected = golden("hpsv2")
    plain = tiny(resize="longest-side-plain")
    assert (plain.score(images[:1], prompts[:1]) - expected[:1]).abs() > 1e-4
    assert plain.provenance != tiny().provenance


def test_file_folder_and_safetensors_hold_the_same(tmp_path):
    images, prompts, expected = golden("hpsv2")
    save_file(hps_state(), tmp_path / "HPS.safetensors")
    for path in (tmp_path, tmp_path / "HPS.safetensors"):
        torch.testing.assert_close(tiny(path).score(images[:1], prompts[:1]), expected[:1], rtol=1e-4, atol=0)
    assert tiny(tmp_path).provenance == tiny(tmp_path / "HPS.safetensors").provenance


def test_provenance_names_weights_architecture_preprocessing_and_versions():
    record = tiny().provenance
    assert set(record) == {"scorer", "about", "weights", "architecture", "preprocessing", "library", "dtype", "scale"}
    assert record["weights"].startswith("blake2b:") and "open-clip-torch 3" in record["library"]
    other = HPSv21(path=str(HPS), architecture=str(ARCHITECTURE)).provenance
    assert (record["scorer"], other["scorer"]) == ("hpsv2", "hpsv2.1") and record["about"] != other["about"]


@pytest.mark.parametrize(("scorer", "file"), [(HPSv2, r"HPS_v2_compressed\.pt"), (HPSv21, r"HPS_v2\.1_compressed\.pt")])
def test_without_network_the_message_names_the_file(scorer, file):
    with pytest.raises(UserError, match=rf"xswu/HPSv2.*{file}.*local folder"):
        _ = scorer().provenance


def test_weights_of_the_other_version(tmp_path):
    shutil.copy(HPS, tmp_path / "HPS_v2.1_compressed.pt")
    with pytest.raises(UserError, match=r"weights of hpsv2\.1, not hpsv2\. Use scorer hpsv2\.1"):
        _ = tiny(tmp_path / "HPS_v2.1_compressed.pt").provenance


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"], "a UNet of diffusers"),
        (["vision_model.post_layernorm.weight"], "a CLIP in the layout of transformers"),
        (["something.else"], "unknown weights"),
    ],
)
def test_weights_of_the_wrong_kind(tmp_path, names, kind):
    save_file({name: torch.zeros(2) for name in names}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=rf"model\.safetensors holds {kind}.*not a CLIP ViT-tiny of open_clip"):
        tiny(tmp_path / "model.safetensors").score(*DOT)


def test_another_architecture():
    with pytest.raises(UserError, match="open_clip has no architecture 'ViT-Z'"):
        _ = HPSv2(path=str(HPS), architecture="ViT-Z").provenance
    with pytest.raises(UserError, match=r"HPS_tiny\.pt.*weights are missing|HPS_tiny\.pt is not a CLIP RN50"):
        HPSv2(path=str(HPS), architecture="ViT-B-32", device="cpu").score(*DOT)


def test_a_pickle_is_not_opened(tmp_path):
    torch.save({"state_dict": torch.nn.Linear(2, 2)}, tmp_path / "whole.pt")
    with pytest.raises(UserError, match=r"whole\.pt holds more than tensors.*not opened"):
        tiny(tmp_path / "whole.pt").score(*DOT)
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(UserError, match=r"text\.pt"):
        tiny(tmp_path / "text.pt").score(*DOT)


def test_a_bad_file_is_refused_before_the_network_takes_gigabytes(tmp_path, monkeypatch):
    def built(*_):
        raise AssertionError("the network was built first")

    monkeypatch.setattr("diffpo.scorers.open_clip_tower._build", built)
    torch.save({"state_dict": torch.nn.Linear(2, 2)}, tmp_path / "whole.pt")
    with pytest.raises(UserError, match="not opened"):
        tiny(tmp_path / "whole.pt").score(*DOT)


def test_several_files_need_a_choice(tmp_path):
    for name in ("a.pt", "b.pt"):
        shutil.copy(HPS, tmp_path / name)
    with pytest.raises(UserError, match=r"several files of weights \(a\.pt, b\.pt\) and no HPS_v2_compressed\.pt"):
        _ = tiny(tmp_path).provenance
    assert tiny(tmp_path, file="b.pt").provenance["weights"].startswith("blake2b:")


def test_damaged_weights_are_an_error(tmp_path):
    state = hps_state()
    state["visual.ln_post.weight"][:] = float("nan")
    torch.save({"state_dict": state}, tmp_path / "nan.pt")
    with pytest.raises(UserError, match=r"hpsv2 scored image 0 of 1 as nan.*damaged"):
        tiny(tmp_path / "nan.pt").score(*DOT)


def test_without_open_clip_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)  # as if it were not installed
    for scorer in (tiny(), Clip(model=str(HPS), architecture=str(ARCHITECTURE))):
        with pytest.raises(
            UserError, match=r"need open-clip-torch, which is not installed: pip install 'diffpo\[scorers\]'"
        ):
            _ = scorer.provenance
