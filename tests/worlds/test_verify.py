"""The verifier: right on what was drawn, also after blur, noise and JPEG; not to be fooled by anything else."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from shapes_builder.sampling import BASE_STYLE, WIDE_STYLE, sample_scenes

from diffpo.worlds.shapes.render import render_batch, to_uint8
from diffpo.worlds.shapes.scenes import COLORS, OPPOSITE, SHAPES, ObjectSpec, SceneSpec, parse_caption, sample_prompts
from diffpo.worlds.shapes.verify import ATTRIBUTES, Verdict, see, verify


def drawn(n, style=BASE_STYLE, seed=0):
    specs = [parse_caption(caption) for caption in sample_prompts("train", n, seed)]
    scenes = sample_scenes(specs, torch.Generator().manual_seed(seed), style)
    return to_uint8(render_batch(scenes)), specs


@pytest.mark.parametrize(("style", "n"), [(BASE_STYLE, 1500), (WIDE_STYLE, 600)])
def test_every_drawn_scene_passes(style, n):
    images, specs = drawn(n, style)
    failed = [s.caption for image, s in zip(images, specs, strict=True) if not verify(image, s.caption).passed]
    assert failed == []


@pytest.mark.parametrize("damage", ["blur", "noise", "jpeg"])
def test_damage_does_not_matter(damage):
    images, specs = drawn(80, seed=1)
    noise = np.random.default_rng(0)
    for image, spec in zip(images, specs, strict=True):
        if damage == "blur":
            image = ndimage.gaussian_filter(image.astype(float), (0.8, 0.8, 0)).round().astype(np.uint8)
        elif damage == "noise":
            image = np.clip(image + noise.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
        else:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "JPEG", quality=90)
            image = Image.open(buffer)
        assert verify(image, spec.caption).passed, spec.caption


def test_swapped_colours_fail():
    images, specs = drawn(60, seed=2)
    for image, spec in zip(images, specs, strict=True):
        first, second = ObjectSpec(spec.second.color, spec.first.shape), ObjectSpec(spec.first.color, spec.second.shape)
        assert not verify(image, SceneSpec(first, second, spec.relation, spec.background).caption).passed


def test_a_turned_relation_fails_and_nothing_else():
    images, specs = drawn(60, seed=3)
    for image, spec in zip(images, specs, strict=True):
        verdict = verify(image, SceneSpec(spec.first, spec.second, OPPOSITE[spec.relation], spec.background).caption)
        assert verdict == Verdict(**{name: name != "relation" for name in ATTRIBUTES})
        assert verdict.score == pytest.approx(6 / 7)


def test_the_mirrored_caption_passes():
    images, specs = drawn(40, seed=4)
    assert all(verify(image, spec.mirrored().caption).passed for image, spec in zip(images, specs, strict=True))


@pytest.mark.parametrize("attribute", ["shape1", "shape2", "color1", "background"])
def test_one_wrong_word_fails_exactly_that(attribute):
    images, specs = drawn(40, seed=5)
    for image, spec in zip(images, specs, strict=True):
        first, second, background = spec.first, spec.second, spec.background
        if attribute == "shape1":
            first = ObjectSpec(first.color, next(s for s in SHAPES if s not in (first.shape, second.shape)))
        elif attribute == "shape2":
            second = ObjectSpec(second.color, next(s for s in SHAPES if s not in (first.shape, second.shape)))
        elif attribute == "color1":
            first = ObjectSpec(next(c for c in COLORS if c not in (first.color, second.color)), first.shape)
        else:
            background = "white" if background == "black" else "black"
        verdict = verify(image, SceneSpec(first, second, spec.relation, background).caption)
        assert [name for name, right in verdict._asdict().items() if not right] == [attribute]


def test_blank_images_fail():
    caption = "a red circle left of a blue square on a white background"
    verdict = verify(np.full((64, 64, 3), 245, np.uint8), caption)
    assert [name for name, right in verdict._asdict().items() if right] == ["background"]
    assert verify(np.full((64, 64, 3), (255, 0, 0), np.uint8), caption).score <= 2 / 7


def test_noise_fails():
    noise = np.random.default_rng(0)
    for caption in sample_prompts("train", 20):
        assert verify(noise.integers(0, 256, (64, 64, 3), dtype=np.uint8), caption).score <= 1 / 7


def test_a_third_object_fails():
    images, specs = drawn(1, seed=6)
    image = images[0].copy()
    other = (see(image).objects[0].y < 32) * 40 + 4
    image[other : other + 12, 26:38] = (0, 200, 0) if "green" not in specs[0].caption else (200, 0, 0)
    assert not verify(image, specs[0].caption).objects


def test_a_missing_object_fails_its_attributes():
    spec = parse_caption("a red circle left of a blue square on a black background")
    image = to_uint8(render_batch(sample_scenes([spec], torch.Generator().manual_seed(0))))[0].copy()
    image[image[..., 2] > image[..., 0]] = 10  # what is blue goes
    right = [name for name, value in verify(image, spec.caption)._asdict().items() if value]
    assert right == ["color1", "shape1", "background"]


def test_kinds_of_image_agree():
    images, specs = drawn(3, seed=7)
    for image, spec in zip(images, specs, strict=True):
        tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        assert see(image) == see(Image.fromarray(image)) == see(tensor)
        assert verify(tensor, spec.caption).passed


def test_wrong_sizes_and_types_are_refused():
    caption = sample_prompts("train", 1)[0]
    with pytest.raises(ValueError, match="64x64"):
        verify(Image.new("RGB", (32, 32)), caption)
    with pytest.raises(ValueError, match="uint8"):
        verify(np.zeros((64, 64, 3)), caption)
    with pytest.raises(ValueError, match="float tensor"):
        verify(torch.zeros(1, 3, 64, 64), caption)
    with pytest.raises(ValueError, match="not a caption"):
        verify(np.zeros((64, 64, 3), np.uint8), "a cat")
