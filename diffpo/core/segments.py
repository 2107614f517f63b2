"""From labels of a clip's segments, seconds long, to labels of its latent frames (for DenseDPO, arXiv:2506.03517).

A video VAE makes one latent frame of several pixel frames. Where it is causal and takes k r + 1 frames,

    latent frame 0    holds pixel frame 0
    latent frame k    holds pixel frames r (k - 1) + 1 ... r k

and pixel frame f belongs to segment min(floor(f / (fps seconds)), n - 1) of the n that were labelled. The paper does
not say what becomes of a latent frame that holds pixel frames of two segments: the three rules here are ours. Causal
convolutions spread what a pixel frame shows to later latent frames, too, so that labels beside the border of two
segments are less certain than others.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

SegmentRule = Literal["majority", "unanimous", "last"]
"""The label of a latent frame whose pixel frames are labelled differently: that of more than half of them, else 0
(`majority`); always 0 (`unanimous`); that of the last one (`last`)."""

_SLACK = 1e-6  # of a segment: times such as 7 / (50 * 0.14) are whole numbers up to rounding


def causal_frames(frames: int, factor: int) -> list[range]:
    """Say which pixel frames each latent frame of a causal VAE holds.

    Args:
        frames: Pixel frames of the clip, a multiple of `factor` and one more.
        factor: Pixel frames per latent frame, r.
    """
    assert frames % factor == 1 % factor, f"{frames} frames are not k * {factor} + 1"
    return [range(1), *(range(first, first + factor) for first in range(1, frames, factor))]


def segments_of(frames: int, fps: float, seconds: float) -> range:
    """Say how many segments a clip may have: those that its frames begin in, and one more for its last frame's time.

    A clip of 121 frames at 24 frames per second has five segments of a second, or six, of which the last one is a
    single frame.
    """
    length = fps * seconds
    fewest, most = (math.ceil(count / length - _SLACK) for count in (frames - 1, frames))
    return range(max(1, fewest), max(1, most) + 1)


def latent_labels(
    labels: Sequence[int], held: Sequence[range], fps: float, seconds: float, rule: SegmentRule
) -> list[int]:
    """Label each latent frame of a clip.

    Args:
        labels: In {-1, 0, 1}, one per segment; as many as `segments_of` allows.
        held: The pixel frames that each latent frame holds, such as `causal_frames`.
        fps: Pixel frames per second.
        seconds: Length of a segment.
        rule: For latent frames that hold pixel frames of different labels.

    Returns:
        Labels in {-1, 0, 1}, one per latent frame.
    """
    of = [labels[min(int(frame / (fps * seconds) + _SLACK), len(labels) - 1)] for frame in range(held[-1].stop)]
    return [_agreed([of[frame] for frame in frames], rule) for frames in held]


def _agreed(labels: Sequence[int], rule: SegmentRule) -> int:
    if rule == "last":
        return labels[-1]
    label, count = Counter(labels).most_common(1)[0]
    return label if count > (len(labels) - 1 if rule == "unanimous" else len(labels) / 2) else 0
