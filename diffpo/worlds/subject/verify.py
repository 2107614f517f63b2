"""Two exact measures of an image of the subject world: does it show the subject, and does it show the rest?

    subject fidelity   largest overlap of an object with the subject, as a share of what the VAE's round trip leaves
    prompt fidelity    share of six attributes of the prompt that are right; the subject's colours are none of them

An object is a connected region of one colour, where the subject's two colours count as one. Its overlap is the soft
IoU, sum of minima / sum of maxima, over pixels and halves, of two masks: how much of a pixel the object covers and how
near its hue is to the half's, against the subject drawn with the object's centroid and area. So a square of one of the
two colours overlaps by a third, and a square of another colour not at all.
"""

from __future__ import annotations

from itertools import permutations
from typing import NamedTuple

import numpy as np

from diffpo.worlds.shapes.render import signed_distance
from diffpo.worlds.shapes.scenes import HUES
from diffpo.worlds.shapes.verify import (
    UNIT_AREA,
    FoundObject,
    ImageLike,
    Seen,
    hue_distance,
    relation_between,
    see,
    to_array,
)
from diffpo.worlds.subject.scenes import CLASS, COLORS, SubjectSpec, parse_caption

REACHABLE = 0.79
"""The overlap that the four pictures have after a round trip through the base's VAE, on average."""
HUE_REACH = 40.0
"""Degrees from a half's hue at which a pixel counts no more."""


class Verdict(NamedTuple):
    """Which attributes of the prompt an image shows, beside the subject's colours."""

    objects: bool
    subject_shape: bool
    color: bool
    shape: bool
    relation: bool
    background: bool

    @property
    def score(self) -> float:
        """Share of the attributes that are right."""
        return sum(self) / len(self)


def subject_fidelity(image: ImageLike) -> float:
    """How well the image shows the subject, wherever it stands: 0 to 1.

    Raises:
        ValueError: If the image is not 64x64 RGB.
    """
    return min(1.0, best_overlap(image) / REACHABLE)


def best_overlap(image: ImageLike) -> float:
    """The largest overlap of an object of the image with the subject; 0 where there is no object."""
    rgb = to_array(image).astype(np.float32) / 255
    return max((overlap(rgb, item) for item in see(image, alike=COLORS).objects), default=0.0)


def prompt_fidelity(image: ImageLike, caption: str) -> float:
    """How well the image shows what the prompt says beside the subject: 0 to 1.

    Raises:
        ValueError: If the caption is no prompt of the subject world, or the image is not 64x64 RGB.
    """
    return judge(see(image, alike=COLORS), parse_caption(caption)).score


def judge(seen: Seen, spec: SubjectSpec) -> Verdict:
    """Compare what is seen with what is asked, in the assignment of objects that is kindest to the image."""
    verdicts = [
        Verdict(
            objects=len(seen.objects) == 2,
            subject_shape=subject is not None and subject.shape == CLASS,
            color=other is not None and other.color == spec.other.color,
            shape=other is not None and other.shape == spec.other.shape,
            relation=subject is not None and other is not None and relation_between(subject, other) == spec.relation,
            background=seen.background == spec.background,
        )
        for subject, other in permutations([*seen.objects[:2], None, None][:2])
    ]
    return max(verdicts, key=lambda verdict: verdict.score)


def overlap(rgb: np.ndarray, item: FoundObject) -> float:
    """The soft IoU of one object with the subject of equal area and centroid.

    Args:
        rgb: float32 `[h w 3]` in [0, 1].
        item: An object of it.
    """
    size = (item.area / UNIT_AREA[CLASS]) ** 0.5
    rows, columns = (slice(max(0, int(c - 1.8 * size)), int(c + 1.8 * size) + 2) for c in (item.y, item.x))
    rgb = rgb[rows, columns]
    dy, dx = (np.arange(s.start, s.start + n) + 0.5 for s, n in zip((rows, columns), rgb.shape, strict=False))
    dx, dy = dx[None, :] - item.x, dy[:, None] - item.y
    chroma = rgb.max(-1) - rgb.min(-1)
    covered = np.clip((chroma / (item.saturation * item.value) - 0.15) / 0.7, 0, 1)
    near = np.clip(1 - hue_distance(rgb, [HUES[color] for color in COLORS]) / HUE_REACH, 0, 1)
    found = covered[..., None] * near
    square = np.clip(0.5 - signed_distance(CLASS, dx, dy, size), 0, 1)
    drawn = square[..., None] * np.stack([dx < 0, dx >= 0], -1)
    return float(np.minimum(found, drawn).sum() / np.maximum(found, drawn).sum())
