"""The moving world's grammar and drawing: captions, splits, and shapes that stand where they should in every frame."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from moving_builder.sampling import BASE_STYLE, FADES, WIDE_STYLE, sample_clips, sample_specs, spoil

from diffpo.core.segments import causal_frames, latent_labels, segments_of
from diffpo.data.read import read_table
from diffpo.disk.weights import locate
from diffpo.errors import UserError
from diffpo.media.prompts import load_prompts
from diffpo.worlds.assets import asset_path
from diffpo.worlds.moving.render import render, render_batch, to_uint8
from diffpo.worlds.moving.scenes import (
    FPS,
    FRAME_SIZE,
    FRAMES,
    SEGMENT_SECONDS,
    SEGMENTS,
    SPEEDS,
    Clip,
    ClipSpec,
    all_captions,
    parse_caption,
    sample_prompts,
    segment_of,
    split_captions,
    split_of,
)
from diffpo.worlds.moving.verify import verify
from diffpo.worlds.shapes.scenes import EXTENTS, SPLITS


def test_every_caption_parses_to_what_it_says():
    assert len(all_captions()) == len(set(all_captions())) == 6 * 3 * 4 * 3 * 2
    assert all(parse_caption(caption).caption == caption for caption in all_captions())
    spec = ClipSpec("red", "circle", "left", "slowly", "light")
    assert spec.caption == "a red circle moving left slowly on a light background"
    assert parse_caption("  A blue Bar moving up on a dark background.") == ClipSpec("blue", "bar", "up", "", "dark")


@pytest.mark.parametrize(
    "wrong",
    [
        "a red circle on a light background",
        "a red square moving left on a light background",
        "a red circle moving left quickly on a light background",
        "a red circle moving left  on a light background, too",
        "",
    ],
)
def test_other_captions_are_refused(wrong):
    with pytest.raises(ValueError, match=r"not a caption of the moving world.*slowly"):
        parse_caption(wrong)


def test_the_splits_share_no_caption_and_leave_none_out():
    parts = [split_captions(split) for split in SPLITS]
    assert sorted(caption for part in parts for caption in part) == sorted(all_captions())
    assert [len(part) for part in parts] == [323, 48, 61]
    assert {split_of(caption) for caption in parts[2]} == {"heldout"}
    with pytest.raises(ValueError, match="unknown split 'test'"):
        split_captions("test")


def test_prompts_use_each_caption_equally_often():
    prompts = sample_prompts("validation", 100, seed=3)
    counts = {prompt: prompts.count(prompt) for prompt in prompts}
    assert len(counts) == 48 and set(counts.values()) == {2, 3}
    assert prompts == sample_prompts("validation", 100, seed=3) != sample_prompts("validation", 100, seed=4)
    with pytest.raises(ValueError, match="-1"):
        sample_prompts("train", -1)


def test_frames_lie_in_four_equal_segments():
    assert [segment_of(frame) for frame in range(FRAMES)] == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert list(segments_of(FRAMES, FPS, SEGMENT_SECONDS)) == [SEGMENTS]
    held = causal_frames(FRAMES, 2)
    assert latent_labels([1, 0, -1, 1], held, FPS, SEGMENT_SECONDS, "unanimous") == [1, 1, 0, -1, 1]


@pytest.mark.parametrize("style", [BASE_STYLE, WIDE_STYLE])
def test_the_shape_is_inside_in_every_frame_and_as_fast_as_its_word(style):
    generator = torch.Generator().manual_seed(0)
    for clip in sample_clips(sample_specs("train", 2000, generator), generator, style):
        width, up, down = (clip.size * extent for extent in EXTENTS[clip.spec.shape])
        low, high = SPEEDS[clip.spec.speed]
        assert low <= clip.speed <= high
        for frame in (0, FRAMES - 1):
            x, y = clip.centre(frame)
            assert width <= x <= FRAME_SIZE - width
            assert up <= y <= FRAME_SIZE - down


def test_one_generator_draws_the_same_clips():
    specs = [parse_caption(caption) for caption in all_captions()[:5]]
    one, two = (sample_clips(specs, torch.Generator().manual_seed(7)) for _ in range(2))
    assert one == two != sample_clips(specs, torch.Generator().manual_seed(8))


def test_a_drawn_clip_by_hand():
    spec = ClipSpec("red", "circle", "right", "", "dark")
    clip = Clip(spec, x=16, y=16, size=5, speed=1, saturation=1, value=1, hue_shift=0, background_level=0.4)
    pictures = render(clip)
    assert pictures.shape == (9, 32, 32, 3) and pictures.dtype == np.uint8
    for frame in range(FRAMES):
        assert clip.centre(frame) == (12 + frame, 16)
        assert pictures[frame, 16, 12 + frame].tolist() == [255, 0, 0]
        assert pictures[frame, 16, (12 + frame + 16) % 32].tolist() == [102, 102, 102]
    area = (pictures[..., 0] / 255.0 - 0.4).sum((1, 2)) / 0.6
    assert np.allclose(area, np.pi * 25, rtol=0.01)


def test_a_spoiled_clip_turns_pale_in_its_segment_and_stays_so():
    """The first frame is never pale: there would be nothing to see."""
    spec = ClipSpec("red", "circle", "right", "", "dark")
    whole = Clip(spec, x=16, y=16, size=5, speed=1, saturation=1, value=1, hue_shift=0, background_level=0.4)
    for segment, first in enumerate((1, 3, 5, 7)):
        pictures = render(replace(whole, pale_from=segment))
        assert np.array_equal(pictures[:first], render(whole)[:first])
        assert [pictures[f, 16, 12 + f].tolist() for f in range(first, FRAMES)] == [[255, 128, 128]] * (FRAMES - first)
        steady = [each.steady for each in verify(pictures, spec.caption).segments]
        assert steady == [i != segment for i in range(SEGMENTS)]


def test_what_moves_fast_turns_pale_more_often():
    generator = torch.Generator().manual_seed(0)
    low, high = SPEEDS[""]
    for speed, probability in zip((low, high), FADES, strict=True):
        clip = replace(sample_clips(sample_specs("train", 1, generator), generator)[0], speed=speed)
        first = np.array([each.pale_from for each in spoil([clip] * 4000, generator)])
        assert np.mean(first == 0) == pytest.approx(probability, abs=0.03)
        assert np.mean(first < SEGMENTS) == pytest.approx(1 - (1 - probability) ** SEGMENTS, abs=0.03)


def test_a_batch_draws_what_each_clip_draws_alone():
    generator = torch.Generator().manual_seed(1)
    clips = sample_clips(sample_specs("train", 3, generator), generator)
    batch = render_batch(clips)
    assert batch.shape == (3, 3, 9, 32, 32) and batch.dtype == torch.float32
    assert batch.min() >= 0 and batch.max() <= 1
    assert all(
        np.array_equal(alone, together) for alone, together in zip(map(render, clips), to_uint8(batch), strict=True)
    )


def test_the_captions_are_prompt_sets_like_those_of_the_shapes_world():
    assert load_prompts("moving:heldout").prompts == split_captions("heldout")
    assert load_prompts("moving:validation:5").prompts == tuple(sample_prompts("validation", 5))
    with pytest.raises(UserError, match=r"unknown prompt set 'moving:test'.*moving:heldout"):
        load_prompts("moving:test")
    with pytest.raises(UserError, match="a number from 1 to 61"):
        load_prompts("moving:heldout:62")


def test_the_shipped_prompts_are_of_their_split():
    for split in SPLITS:
        prompts = asset_path(f"moving/prompts/{split}.txt").read_text(encoding="utf-8").splitlines()
        assert prompts and {split_of(prompt) for prompt in prompts} == {split}


def test_missing_assets_name_the_script_that_makes_them():
    with pytest.raises(FileNotFoundError, match=r"the moving world has neither .*build_moving\.py"):
        asset_path("moving/nothing")
    with pytest.raises(UserError, match=r"unknown embedded weights 'moving:bas'.*moving:base"):
        locate("moving:bas", what="a diffusers model", fetch=Path)
    with pytest.raises(UserError, match=r"moving:pair is no table of an embedded world.*moving:guided"):
        read_table("moving:pair", "train", [])
