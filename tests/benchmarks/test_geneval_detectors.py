"""Mask2Former and CLIP as GenEval's eyes: tiny random networks of the real classes, and hand-made weights."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from diffpo.benchmarks.geneval.detectors import TEMPLATES, ClipColors, Mask2Former, cut_out
from diffpo.benchmarks.geneval.tasks import COLORS, SeenObject
from diffpo.errors import UserError
from diffpo.scorers.clip import Clip

LABELS = {0: "cat", 1: "mouse", 2: "sofa"}


@pytest.fixture(scope="module")
def mask2former(tmp_path_factory):
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessorPil,
        SwinConfig,
    )

    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        num_queries=5,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        id2label=LABELS,
        label2id={name: i for i, name in LABELS.items()},
    )
    folder = tmp_path_factory.mktemp("mask2former")
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def noise(width=48, height=40, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def test_mask2former_runs_end_to_end(mask2former):
    detector = Mask2Former(path=str(mask2former), device="cpu", batch=2)
    images = [noise(seed=i, width=48 + 8 * i) for i in range(3)]
    found = detector.detect(images, 0.0)
    assert [len(objects) for objects in found] == [5, 5, 5]
    for image, objects in zip(images, found, strict=True):
        for item in objects:
            assert item.label in ("cat", "computer mouse", "couch") and 0 < item.confidence < 1
            assert item.mask.shape == (image.height, image.width) and item.mask.dtype == bool
            left, top, right, bottom = map(int, item.box)
            inside = item.mask[top:bottom, left:right]
            assert inside.sum() == item.mask.sum() > 0, "the box holds the mask"
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any(), "and no more"
    highest = max(item.confidence for objects in found for item in objects)
    assert detector.detect(images, highest + 0.01) == [[], [], []]
    assert "blake2b:" in detector.provenance["weights"]


def test_mask2former_finds_what_its_numbers_say(mask2former):
    """One query is sure of a mouse in the left half; a query of no object finds nothing."""
    detector = Mask2Former(path=str(mask2former), device="cpu")
    model, processor = detector._loaded
    classes = torch.full((1, 2, 4), -9.0)
    classes[0, 0, 1] = classes[0, 1, 3] = 9.0  # mouse; none of the three
    masks = torch.full((1, 2, 8, 8), -20.0)
    masks[0, :, :, :4] = 20.0

    class Sure(torch.nn.Module):
        config, device = model.config, torch.device("cpu")

        def forward(self, pixel_values):
            return SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)

    detector.__dict__["_loaded"] = (Sure(), processor)
    ((mouse,),) = detector.detect([noise(60, 40)], 0.3)
    assert mouse.label == "computer mouse" and mouse.confidence > 0.99
    assert mouse.box == pytest.approx((0, 0, 30, 40), abs=1)


def test_a_wrong_model_and_an_absent_one(mask2former, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(UserError, match="'clip' model, which is not a Mask2Former"):
        Mask2Former(path=str(tmp_path), device="cpu").detect([noise()], 0.5)
    with pytest.raises(UserError, match=r"mask2former-swin-small-coco-instance .*config\.json"):
        Mask2Former(device="cpu").detect([noise()], 0.5)


def test_an_object_is_cut_out_on_gray():
    image = Image.new("RGB", (10, 8), "red")
    mask = np.zeros((8, 10), bool)
    mask[2:6, 3:7] = True
    mask[2, 3] = False
    crop = cut_out(image, SeenObject("x", 1.0, (3.0, 2.0, 7.0, 6.0), mask))
    assert crop.size == (4, 4)
    assert crop.getpixel((0, 0)) == (153, 153, 153) and crop.getpixel((1, 0)) == (255, 0, 0)
    whole = cut_out(image, SeenObject("x", 1.0, (2.6, 0.0, 7.4, 8.0)))
    assert whole.size == (4, 8) and whole.getpixel((0, 0)) == (255, 0, 0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny open_clip network, saved as a checkpoint."""
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    (folder / "tiny.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    network = open_clip.CLIP(**config).eval()
    torch.save({"state_dict": network.state_dict()}, folder / "tiny.pt")
    scorer = Clip(model=str(folder / "tiny.pt"), architecture=str(folder / "tiny.json"), device="cpu", batch=7)
    return scorer, network


def test_colors_are_open_clips_zero_shot_classifier(clip):
    import open_clip

    scorer, network = clip
    image = noise(64, 64)
    objects = [SeenObject("car", 1.0, (i, i, 40.0 + i, 30.0 + 2 * i)) for i in range(6)]
    colors = ClipColors(clip=scorer)
    tokenizer = open_clip.SimpleTokenizer()
    templates = [lambda color, text=text: text.format(color=color, label="car") for text in TEMPLATES]
    weights = open_clip.build_zero_shot_classifier(network, tokenizer, COLORS, templates)
    transform = open_clip.image_transform(32, is_train=False)
    with torch.no_grad():
        pixels = torch.stack([transform(cut_out(image, item)) for item in objects])
        expected = (network.encode_image(pixels, normalize=True) @ weights).argmax(1)
    assert colors.name_colors(image, objects, "car") == [COLORS[i] for i in expected.tolist()]
    assert colors.name_colors(image, [], "car") == []
    assert colors.provenance["templates"] == list(TEMPLATES) and "scale" not in colors.provenance
