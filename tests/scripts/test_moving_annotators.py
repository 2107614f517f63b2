"""The moving world's annotators: they see artefacts, do not ask for motion, and err as often as is said."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from moving_builder.annotators import (
    ANNOTATORS,
    FLIP_RATE,
    assess,
    label,
    tie_threshold,
)

from diffpo.worlds.moving.render import render
from diffpo.worlds.moving.scenes import Clip, ClipSpec
from diffpo.worlds.moving.verify import see

SPEC = ClipSpec("red", "circle", "right", "", "dark")
CLIP = Clip(SPEC, x=16, y=16, size=5.2, speed=1.2, saturation=0.9, value=0.95, hue_shift=0, background_level=0.35)


def worth(pictures, annotator="eve"):
    return assess(see(pictures), SPEC.caption, annotator)


@pytest.mark.parametrize("annotator", sorted(ANNOTATORS))
def test_a_fault_costs_its_own_segment_only(annotator):
    pictures = render(CLIP)
    right = worth(pictures, annotator)
    pictures[5:7] = render(replace(CLIP, spec=replace(SPEC, shape="bar")))[5:7]
    wrong = worth(pictures, annotator)
    assert wrong.segments[:2] == right.segments[:2]
    assert wrong.segments[2] < right.segments[2] - 1
    assert wrong.whole < right.whole


def test_flicker_and_jumps_cost():
    right, flicker, jump = render(CLIP), render(CLIP), render(CLIP)
    flicker[4] = render(replace(CLIP, value=0.8))[4]
    jump[4] = render(replace(CLIP, y=17.5))[4]
    for wrong in (flicker, jump):
        assert worth(wrong).segments[1] < worth(right).segments[1] - 0.2


def test_standing_still_is_no_fault_but_moving_the_wrong_way_is():
    right, still, back = (render(clip) for clip in (CLIP, replace(CLIP, speed=0.0), replace(CLIP, speed=-1.2)))
    assert worth(still).segments == pytest.approx(worth(right).segments, abs=0.15)
    assert all(a < b - 0.8 for a, b in zip(worth(back).segments, worth(right).segments, strict=True))


def test_only_those_who_like_it_calm_mind_motion_and_only_in_whole_clips():
    slow, fast = (see(render(replace(CLIP, speed=speed))) for speed in (0.7, 1.7))
    for name, person in ANNOTATORS.items():
        a, b = (assess(seen, SPEC.caption, name) for seen in (slow, fast))
        assert np.mean(a.segments) == pytest.approx(np.mean(b.segments), abs=0.15)
        lost = (np.mean(b.segments) - b.whole) - (np.mean(a.segments) - a.whole)
        assert lost == pytest.approx(person.calm, abs=0.02)
    assert {person.calm > 0 for person in ANNOTATORS.values()} == {True, False}


def test_an_empty_clip_is_worth_least():
    blank = np.full((9, 32, 32, 3), 90, np.uint8)
    assert worth(blank).segments == (-2.0,) * 4


def test_unknown_annotators_are_named():
    with pytest.raises(ValueError, match=r"unknown annotator 'zoe'.*eve"):
        worth(render(CLIP), "zoe")


def test_the_threshold_makes_the_wanted_share_of_ties():
    differences = np.random.default_rng(0).normal(size=2000)
    threshold = tie_threshold(differences)
    generator = torch.Generator().manual_seed(0)
    labels = [label(difference, threshold, generator) for difference in differences]
    assert np.mean(np.array(labels) == 0) == pytest.approx(0.6, abs=0.001)
    assert label(0.0, 0.0, generator) == 0


def test_labels_err_as_often_as_is_said():
    generator = torch.Generator().manual_seed(1)
    threshold, n = 0.1, 4000
    for times in (1.01, 3.0, 50.0):
        right = np.mean([label(times * threshold, threshold, generator) == 1 for _ in range(n)])
        kept = 1 / (1 + np.exp(-times))
        assert right == pytest.approx(kept * (1 - FLIP_RATE) + (1 - kept) * FLIP_RATE, abs=0.025)
    one, two = ([label(0.2, 0.1, g) for _ in range(50)] for g in (torch.Generator().manual_seed(s) for s in (5, 5)))
    assert one == two
