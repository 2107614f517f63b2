"""Segments of seconds to latent frames: examples that were worked by hand, and the borders of the rules."""

import itertools

import pytest

from diffpo.core.segments import causal_frames, latent_labels, segments_of

EXAMPLES = {
    (121, 24, 4): (
        [1, -1, 0, 1, -1],
        {
            "majority": [(7, 1), (6, -1), (6, 0), (6, 1), (6, -1)],
            "unanimous": [(6, 1), (1, 0), (5, -1), (7, 0), (5, 1), (1, 0), (6, -1)],
            "last": [(6, 1), (6, -1), (6, 0), (6, 1), (7, -1)],
        },
    ),
    (81, 16, 4): (
        [1, -1, 0, 1, -1],
        {
            "majority": [(5, 1), (4, -1), (4, 0), (4, 1), (4, -1)],
            "unanimous": [(4, 1), (1, 0), (3, -1), (5, 0), (3, 1), (1, 0), (4, -1)],
            "last": [(4, 1), (4, -1), (4, 0), (4, 1), (5, -1)],
        },
    ),
    (121, 24, 8): (
        [1, -1, 0, 1, -1],
        {
            "majority": [(4, 1), (3, -1), (3, 0), (3, 1), (3, -1)],
            "unanimous": [(3, 1), (1, 0), (2, -1), (4, 0), (2, 1), (1, 0), (3, -1)],
            "last": [(3, 1), (3, -1), (3, 0), (3, 1), (4, -1)],
        },
    ),
    (49, 8, 4): (
        [1, -1, 0, 1, -1, 1],
        {
            "majority": [(3, 1), (2, -1), (2, 0), (2, 1), (2, -1), (2, 1)],
            "unanimous": [(2, 1), (1, 0), (1, -1), (3, 0), (1, 1), (1, 0), (1, -1), (1, 0), (2, 1)],
            "last": [(2, 1), (2, -1), (2, 0), (2, 1), (2, -1), (3, 1)],
        },
    ),
}
"""(frames, frames per second, frames per latent frame): labels of segments of a second, and runs of latent labels."""


@pytest.mark.parametrize("rule", ["majority", "unanimous", "last"])
@pytest.mark.parametrize("clip", EXAMPLES, ids=lambda clip: "{} at {}, {} to one".format(*clip))
def test_the_worked_examples(clip, rule):
    frames, fps, factor = clip
    labels, runs = EXAMPLES[clip]
    held = causal_frames(frames, factor)
    assert len(held) == (frames - 1) // factor + 1 and sorted(itertools.chain(*held)) == list(range(frames))
    found = latent_labels(labels, held, fps, 1.0, rule)
    assert [(len(list(run)), label) for label, run in itertools.groupby(found)] == runs[rule]
    assert latent_labels([-label for label in labels], held, fps, 1.0, rule) == [-label for label in found]


def test_half_is_no_majority():
    """Latent frame 1 holds pixel frames 1 to 4; at 3 frames per second, frames 1 and 2 belong to segment 0."""
    assert latent_labels([1, -1], causal_frames(5, 4), 3, 1.0, "majority") == [1, 0]
    assert latent_labels([1, -1], causal_frames(5, 4), 4, 1.0, "majority") == [1, 1]


def test_rounding_moves_no_border():
    """Segments of 0.14 s at 50 frames per second are 7 frames long, although 50 * 0.14 is a little more than 7."""
    held = [range(frame, frame + 1) for frame in range(14)]
    assert 50 * 0.14 > 7
    assert latent_labels([1, -1], held, 50, 0.14, "last") == [1] * 7 + [-1] * 7
    assert list(segments_of(14, 50, 0.14)) == [2] and list(segments_of(15, 50, 0.14)) == [2, 3]


@pytest.mark.parametrize(
    ("frames", "fps", "seconds", "allowed"),
    [
        (121, 24, 1.0, [5, 6]),
        (81, 16, 1.0, [5, 6]),
        (49, 8, 1.0, [6, 7]),
        (100, 24, 1.0, [5]),
        (49, 8, 2.0, [3, 4]),
        (5, 16, 1.0, [1]),
        (1, 16, 1.0, [1]),
    ],
)
def test_how_many_segments_a_clip_has(frames, fps, seconds, allowed):
    assert list(segments_of(frames, fps, seconds)) == allowed
    for count in allowed:
        assert len(latent_labels([1] * count, causal_frames(frames, 4 if frames % 4 else 1), fps, seconds, "last"))


def test_an_image_is_one_segment():
    assert causal_frames(1, 4) == [range(1)] and causal_frames(1, 1) == [range(1)]
    assert latent_labels([-1], causal_frames(1, 4), 16, 1.0, "majority") == [-1]
