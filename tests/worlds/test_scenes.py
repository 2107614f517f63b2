"""The grammar: captions parse back, splits are disjoint, scenes are what they say."""

import pytest
import torch
from shapes_builder.sampling import BASE_STYLE, WIDE_STYLE, sample_scenes, sample_specs

from diffpo.worlds.shapes.scenes import (
    EXTENTS,
    IMAGE_SIZE,
    SPLITS,
    ObjectSpec,
    SceneSpec,
    all_captions,
    parse_caption,
    sample_prompts,
    split_captions,
    split_of,
)


def test_a_caption_parses_to_its_spec():
    spec = parse_caption("a red circle left of a blue square on a white background")
    assert spec == SceneSpec(ObjectSpec("red", "circle"), ObjectSpec("blue", "square"), "left of", "white")


def test_every_caption_parses_back_exactly():
    captions = all_captions()
    assert len(captions) == len(set(captions)) == 6 * 5 * 4 * 4 * 4 * 3
    for caption in captions[::7]:
        assert parse_caption(caption).caption == caption


def test_case_spaces_and_a_full_stop_do_not_matter():
    assert parse_caption("A red circle  left of a blue square on a white background.").first.color == "red"


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a photo of a cat",
        "a red circle beside a blue square on a white background",
        "a pink circle left of a blue square on a white background",
        "a red circle left of a blue square",
        "a red circle left of a blue square on a white background and more",
    ],
)
def test_an_unknown_caption_is_refused_with_what_is_allowed(caption):
    with pytest.raises(ValueError, match="COLOR SHAPE RELATION"):
        parse_caption(caption)


def test_equal_colors_are_refused():
    with pytest.raises(ValueError, match="differ in colour"):
        parse_caption("a red circle left of a red square on a white background")


def test_splits_are_disjoint_and_cover_everything():
    parts = [set(split_captions(split)) for split in SPLITS]
    assert set.union(*parts) == set(all_captions())
    assert sum(map(len, parts)) == len(all_captions())
    assert len(split_captions("heldout")) > 600


def test_both_captions_of_a_picture_are_in_one_split():
    for caption in all_captions()[::13]:
        assert split_of(parse_caption(caption).mirrored().caption) == split_of(caption)


def test_prompts_depend_on_the_seed_only():
    assert sample_prompts("heldout", 50, seed=3) == sample_prompts("heldout", 50, seed=3)
    assert sample_prompts("heldout", 50, seed=3) != sample_prompts("heldout", 50, seed=4)
    assert sample_prompts("heldout", 80, seed=3)[:50] == sample_prompts("heldout", 50, seed=3)
    assert len(set(sample_prompts("heldout", 200))) == 200
    assert len(sample_prompts("validation", 1000)) == 1000


def test_an_unknown_split_or_a_negative_number_is_refused():
    with pytest.raises(ValueError, match="unknown split"):
        sample_prompts("test", 3)
    with pytest.raises(ValueError, match="negative"):
        sample_prompts("train", -1)


def test_the_splits_have_not_moved():
    """Shipped models were trained on this split: a change would leak held-out prompts into them."""
    assert [len(split_captions(split)) for split in SPLITS] == [4282, 536, 942]
    assert sample_prompts("heldout", 1, seed=0) == ["a cyan square left of a red triangle on a white background"]


@pytest.mark.parametrize("style", [BASE_STYLE, WIDE_STYLE])
def test_objects_are_inside_apart_and_in_their_relation(style):
    generator = torch.Generator().manual_seed(0)
    for scene in sample_scenes(sample_specs("train", 500, generator), generator, style):
        for item, spec in ((scene.first, scene.spec.first), (scene.second, scene.spec.second)):
            half_width, up, down = (reach * item.size for reach in EXTENTS[spec.shape])
            assert item.x - half_width >= 1 and item.x + half_width <= IMAGE_SIZE - 1
            assert item.y - up >= 1 and item.y + down <= IMAGE_SIZE - 1
        dx, dy = scene.first.x - scene.second.x, scene.first.y - scene.second.y
        along, across = (dx, dy) if scene.spec.relation in ("left of", "right of") else (dy, dx)
        assert (along < 0) == (scene.spec.relation in ("left of", "above"))
        assert abs(across) < abs(along)


def test_scenes_are_deterministic_given_a_generator():
    specs = [parse_caption(caption) for caption in sample_prompts("train", 20)]
    first, second = (sample_scenes(specs, torch.Generator().manual_seed(5)) for _ in range(2))
    assert first == second
    assert first != sample_scenes(specs, torch.Generator().manual_seed(6))
