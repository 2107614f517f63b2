"""The shapes world's captioner sees what was drawn; its perturber changes as many attributes as it says."""

import numpy as np
import pytest
import torch
from PIL import Image
from shapes_builder.sampling import sample_scenes

from diffpo.captioners import ShapesCaptioner, ShapesPerturber
from diffpo.errors import UserError
from diffpo.worlds.shapes.render import render
from diffpo.worlds.shapes.scenes import parse_caption, sample_prompts, split_captions, split_of
from diffpo.worlds.shapes.verify import UNKNOWN, see, verify

CAPTION = "a red circle left of a blue square on a white background"
OTHER = "a green cross above a yellow triangle on a black background"
CHANGES = {"weak": 1, "medium": 2, "strong": 3}


def draw(captions, seed=0):
    scenes = sample_scenes([parse_caption(c) for c in captions], torch.Generator().manual_seed(seed))
    return [Image.fromarray(render(scene)) for scene in scenes]


def caption(image, prompt):
    return ShapesCaptioner(splits="ignore").caption([image], [prompt], [0])[0]


def attributes(text):
    spec = parse_caption(text)
    return [spec.first.color, spec.first.shape, spec.second.color, spec.second.shape, spec.relation, spec.background]


def test_a_picture_of_its_prompt_is_captioned_with_the_prompt():
    prompts = sample_prompts("train", 60)
    assert ShapesCaptioner().caption(draw(prompts), prompts, range(60)) == prompts


def test_a_picture_of_something_else_is_captioned_with_what_it_shows():
    shown, prompts = sample_prompts("train", 60, seed=1), sample_prompts("train", 60, seed=2)
    images = draw(shown)
    captions = ShapesCaptioner().caption(images, prompts, range(60))
    assert all(verify(image, text).passed for image, text in zip(images, captions, strict=True))
    mirrored = [parse_caption(text).mirrored().caption for text in shown]
    assert all(text in pair for text, pair in zip(captions, zip(shown, mirrored, strict=True), strict=True))


def test_of_both_forms_the_one_nearest_to_the_prompt_is_taken():
    image = draw([CAPTION])[0]
    mirrored = parse_caption(CAPTION).mirrored().caption
    assert caption(image, CAPTION) == CAPTION and caption(image, mirrored) == mirrored


def test_what_is_held_out_stays_so():
    """A held-out picture of a training prompt is captioned with the prompt; training captions become such."""
    shown, prompts = sample_prompts("heldout", 40), sample_prompts("train", 40, seed=1)
    images = draw(shown)
    assert ShapesCaptioner().caption(images, prompts, range(40)) == prompts
    assert ShapesCaptioner().caption(images, shown, range(40)) == shown
    for level in CHANGES:
        changed = ShapesPerturber(level=level).perturb(prompts, range(40))
        assert {split_of(text) for text in changed} == {"train"}
    assert len({split_of(text) for text in ShapesPerturber(splits="ignore").perturb(prompts, range(40))}) > 1
    assert len(ShapesPerturber(level="weak").perturb(shown, range(40))) == 40


def test_every_training_caption_can_be_perturbed():
    captions = list(split_captions("train"))
    assert len(ShapesPerturber(level="weak").perturb(captions, range(len(captions)))) == len(captions) > 4000


def half(image):
    """Paint the half with the blue square over with the background."""
    pixels = np.array(image)
    pixels[:, max(np.nonzero(pixels[..., 0].astype(int) - pixels[..., 2] > 60)[1]) + 2 :] = pixels[0, 0]
    return Image.fromarray(pixels)


def test_what_cannot_be_seen_is_taken_from_the_prompt():
    image = half(draw([CAPTION])[0])
    assert [(o.color, o.shape) for o in see(image).objects] == [("red", "circle")]
    assert caption(image, OTHER) == "a red circle above a yellow triangle on a white background"
    assert caption(image, "a cyan cross below a red circle on a gray background") == (
        "a cyan cross below a red circle on a white background"
    )


def test_nothing_to_see_leaves_the_prompt_but_for_the_background():
    assert caption(Image.new("RGB", (64, 64), "black"), CAPTION) == CAPTION.replace("white", "black")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    assert see(noise).background == UNKNOWN
    assert attributes(caption(noise, CAPTION))[-1] == "white"


def test_two_objects_of_one_colour_have_no_words():
    """Pasted from two pictures: two red circles; only one of them is named."""
    pixels = np.array(draw([CAPTION])[0])
    left = pixels[:, :32].copy()
    twice = Image.fromarray(np.concatenate([left, left], 1))
    assert [o.color for o in see(twice).objects] == ["red", "red"]
    assert caption(twice, OTHER) == "a red circle above a yellow triangle on a white background"


def test_other_images_and_prompts_are_refused():
    with pytest.raises(UserError, match=r"captioner shapes reads images of the shapes world only.*64x64"):
        caption(Image.new("RGB", (32, 32)), CAPTION)
    with pytest.raises(UserError, match="a cat"):
        caption(Image.new("RGB", (64, 64)), "a cat")


@pytest.mark.parametrize("level", CHANGES)
def test_as_many_attributes_change_as_the_level_says(level):
    captions = sample_prompts("train", 300)
    changed = ShapesPerturber(level=level).perturb(captions, range(300))
    for before, after in zip(captions, changed, strict=True):
        assert sum(a != b for a, b in zip(attributes(before), attributes(after), strict=True)) == CHANGES[level]
        assert after != parse_caption(before).mirrored().caption
    kinds = {
        i for a, b in zip(captions, changed, strict=True) for i in range(6) if attributes(a)[i] != attributes(b)[i]
    }
    assert kinds == set(range(6))


def test_a_perturbed_caption_fails_on_the_picture():
    captions = sample_prompts("train", 60)
    images, changed = draw(captions), ShapesPerturber(level="weak").perturb(captions, range(60))
    assert not any(verify(image, text).passed for image, text in zip(images, changed, strict=True))


def test_draws_follow_the_key_and_the_seed():
    perturber = ShapesPerturber()
    assert perturber.perturb([CAPTION] * 3, [1, 2, 3])[1] == perturber.perturb([CAPTION], [2])[0]
    assert len(set(perturber.perturb([CAPTION] * 20, range(20)))) > 10
    assert perturber.perturb([CAPTION] * 9, range(9)) != ShapesPerturber(seed=1).perturb([CAPTION] * 9, range(9))


def test_other_captions_are_refused():
    with pytest.raises(UserError, match="perturber shapes rewrites captions of the shapes world only"):
        ShapesPerturber().perturb(["a cat"], [0])
