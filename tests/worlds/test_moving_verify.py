"""The moving world's verifier: right on all that was drawn, and it names each fault in the segment where it is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from moving_builder.sampling import BASE_STYLE, WIDE_STYLE, sample_clips
from PIL import Image
from scipy import ndimage

from diffpo.worlds.moving.render import render, render_batch, to_uint8
from diffpo.worlds.moving.scenes import FRAMES, SHAPES, Clip, ClipSpec, parse_caption, sample_prompts
from diffpo.worlds.moving.verify import ATTRIBUTES, SegmentVerdict, amplitude, judge, largest, motion, see, verify

SPEC = ClipSpec("red", "circle", "right", "", "dark")
CLIP = Clip(SPEC, x=16, y=16, size=5.2, speed=1.2, saturation=0.9, value=0.95, hue_shift=0, background_level=0.35)
RIGHT = SegmentVerdict(True, True, True, True, True)


def drawn(n, style=BASE_STYLE, seed=0):
    specs = [parse_caption(caption) for caption in sample_prompts("train", n, seed)]
    clips = sample_clips(specs, torch.Generator().manual_seed(seed), style)
    return clips, to_uint8(render_batch(clips))


@pytest.mark.parametrize("style", [BASE_STYLE, WIDE_STYLE])
def test_every_drawn_clip_passes_and_its_motion_is_measured(style):
    for clip, pictures in zip(*drawn(200, style), strict=True):
        seen = see(pictures)
        verdict = judge(seen, clip.spec)
        assert verdict.passed and verdict.score == 1, clip
        assert amplitude([largest(frame) for frame in seen]) == pytest.approx(clip.speed, abs=0.04)


@pytest.mark.parametrize("damage", ["blur", "noise"])
def test_damage_does_not_matter(damage):
    noise = np.random.default_rng(0)
    for clip, pictures in zip(*drawn(40, seed=1), strict=True):
        if damage == "blur":
            pictures = ndimage.gaussian_filter(pictures.astype(float), (0, 0.5, 0.5, 0)).round().astype(np.uint8)
        else:
            pictures = np.clip(pictures + noise.normal(0, 5, pictures.shape), 0, 255).astype(np.uint8)
        assert verify(pictures, clip.spec.caption).passed, clip


def test_all_forms_of_a_clip_are_the_same():
    pictures = render(CLIP)
    tensor, images = render_batch([CLIP])[0], [Image.fromarray(frame) for frame in pictures]
    assert verify(pictures, SPEC.caption) == verify(tensor, SPEC.caption) == verify(images, SPEC.caption)
    assert verify(pictures, SPEC.caption).segments == (RIGHT,) * 4


@pytest.mark.parametrize(
    ("word", "other"),
    [("color", "yellow"), ("shape", "bar"), ("direction", "left"), ("direction", "up"), ("background", "light")],
)
def test_one_wrong_word_fails_exactly_that(word, other):
    attributes = verify(render(CLIP), replace(SPEC, **{word: other}).caption).attributes
    assert attributes == {name: float(name != word) for name in ATTRIBUTES}


@pytest.mark.parametrize(("speed", "slow", "fast"), [(0.7, True, False), (1.7, False, True)])
def test_a_word_for_speed_is_checked_and_no_word_asks_for_none(speed, slow, fast):
    pictures = render(replace(CLIP, speed=speed))
    assert [verify(pictures, replace(SPEC, speed=word).caption).speed for word in ("slowly", "fast", "")] == [
        slow,
        fast,
        True,
    ]


def frames_with(change, *frames):
    """The clip with some frames drawn from a changed one."""
    pictures, other = render(CLIP), render(change(CLIP))
    pictures[list(frames)] = other[list(frames)]
    return verify(pictures, SPEC.caption)


def faults(verdict):
    return [{name for name in SegmentVerdict._fields if not getattr(s, name)} for s in verdict.segments]


def test_a_vanished_object_is_missed_where_it_vanished():
    pictures = render(CLIP)
    pictures[5:7] = pictures[0, 0, 0]
    verdict = verify(pictures, SPEC.caption)
    gone = {"present", "color", "shape", "direction", "steady"}
    assert faults(verdict) == [set(), set(), gone, {"steady"}]  # the object comes back from nowhere
    assert not verdict.passed and verdict.background


def test_a_second_object_is_one_too_many():
    pictures = render(CLIP)
    other = render(replace(CLIP, spec=replace(SPEC, color="blue"), y=26, size=4))
    blue = other[..., 2] > 150
    pictures[7:][blue[7:]] = other[7:][blue[7:]]
    assert faults(verify(pictures, SPEC.caption)) == [set(), set(), set(), {"present"}]


@pytest.mark.parametrize(
    ("fault", "change"),
    [
        ("color", lambda clip: replace(clip, spec=replace(clip.spec, color="purple"))),
        ("shape", lambda clip: replace(clip, spec=replace(clip.spec, shape="bar"), size=5.5)),
    ],
)
def test_a_change_of_the_object_is_found_in_its_segment(fault, change):
    verdict = frames_with(change, 3, 4)
    found = faults(verdict)
    assert fault in found[1] and fault not in found[0] | found[2] | found[3]
    assert "steady" not in found[0] | found[3]


@pytest.mark.parametrize(
    "change",
    [
        lambda clip: replace(clip, size=4.2),
        lambda clip: replace(clip, saturation=0.6),
        lambda clip: replace(clip, value=0.75),
        lambda clip: replace(clip, background_level=0.45),
        lambda clip: replace(clip, y=18.5),
    ],
    ids=["size", "saturation", "value", "background", "jump"],
)
def test_flicker_is_found_in_its_segment(change):
    found = faults(frames_with(change, 3))
    assert found[1] == {"steady"} and not found[0] and not found[2] and not found[3]


def test_a_clip_that_stands_still_or_turns_back_moves_not_as_it_should():
    still = verify(render(replace(CLIP, speed=0.0)), SPEC.caption)
    assert faults(still) == [{"direction"}] * 4
    assert motion(render(replace(CLIP, speed=0.0))) == pytest.approx(0, abs=0.01)
    back = render(CLIP)[[0, 1, 2, 3, 4, 3, 2, 1, 0]]
    assert ["direction" in found for found in faults(verify(back, SPEC.caption))] == [False, False, True, True]
    assert motion(back) == pytest.approx(CLIP.speed, abs=0.05)


def test_motion_is_weighted_by_how_much_of_the_object_is_seen():
    """What is left of a fading object may lie anywhere; it must not be taken for a motion of the whole."""
    pictures = render(CLIP)
    speck = pictures[0].copy()
    speck[:] = pictures[0, 0, 0]
    speck[25:31, 0:6] = (240, 20, 20)
    pictures[8] = speck
    assert motion(pictures) < 3 < np.hypot(*(28 - 16, 3 - 20.8)) / 2


def test_an_empty_clip_has_no_motion_and_fails():
    blank = np.full((FRAMES, 32, 32, 3), 90, np.uint8)
    assert motion(blank) == 0
    assert verify(blank, SPEC.caption).attributes == {
        name: float(name in ("speed", "background")) for name in ATTRIBUTES
    }


def test_the_shapes_of_the_world_are_told_apart():
    for shape in SHAPES:
        spec = replace(SPEC, shape=shape)
        seen = see(render(replace(CLIP, spec=spec)))
        assert [judge(seen, replace(SPEC, shape=other)).attributes["shape"] for other in SHAPES] == [
            float(other == shape) for other in SHAPES
        ]


@pytest.mark.parametrize(
    "clip",
    [
        np.zeros((8, 32, 32, 3), np.uint8),
        np.zeros((9, 64, 64, 3), np.uint8),
        np.zeros((9, 32, 32, 3), np.float32),
        torch.zeros(9, 3, 32, 32),
        torch.zeros(3, 9, 32, 32, dtype=torch.uint8),
        [Image.new("RGB", (32, 32))] * 5,
    ],
)
def test_other_clips_are_refused(clip):
    with pytest.raises(ValueError, match="expected"):
        verify(clip, SPEC.caption)
