"""Simulated annotators, who compare two clips segment by segment and label which one is better there.

They look at the object and at artefacts. In each segment

    utility = 2 object + clarity - flicker - jumps

where `object` is the share of the frames with exactly one object of the right colour and shape, less a half where it
moves another way than the caption says; `clarity` is how well its outline fits the shape; `flicker` and `jumps` add up
what changes from frame to frame and should not. Nobody asks how far it moves: a clip that stands still has few
artefacts. So a model that learns from such labels may lose its motion, as models do that learn from people's. What a
whole clip is worth is the mean over its segments, less `calm` times its motion in pixels per frame, for annotators who
look at the clip as a whole and like it calm.

Choices are noisy: a tie where the utilities differ by less than a threshold; else Bradley-Terry with the threshold as
its temperature; then, with probability `FLIP_RATE`, the opposite. The threshold is a quantile of the differences in the
table that is labelled (`tie_threshold`), since two clips that were made from one look far more alike than two from
noise. Nobody here is real.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import tanh

import numpy as np
import torch

from diffpo.worlds.moving.scenes import SEGMENTS, ClipSpec, parse_caption
from diffpo.worlds.moving.verify import (
    MAX_CHANGES,
    MIN_SPEED,
    SeenFrame,
    amplitude,
    changes,
    frames_of,
    heads_right,
    segment_velocity,
    subject,
)
from diffpo.worlds.shapes.verify import FoundObject

TIE_SHARE = 0.6
FLIP_RATE = 0.04
CLEAR, BLURRED = 0.95, 0.6  # overlaps with its shape's outline at which `clarity` is 1 and 0


@dataclass(frozen=True)
class Annotator:
    """One simulated person: how much each thing matters."""

    object: float = 2.0
    clarity: float = 1.0
    flicker: float = 0.5
    jumps: float = 0.5
    calm: float = 0.0
    """Utility lost for each pixel per frame of motion, when whole clips are compared."""


ANNOTATORS = {
    "eve": Annotator(),
    "fay": Annotator(object=1.5, clarity=1.5, calm=0.3),  # looks at outlines, and likes it calm
    "gus": Annotator(flicker=1.0, jumps=0.8, calm=0.4),  # whom flicker disturbs
    "hal": Annotator(object=2.5, clarity=0.6, flicker=0.3),  # right is right
}
"""By `user_id`."""


@dataclass(frozen=True)
class Judgement:
    """What one annotator finds in one clip."""

    segments: tuple[float, ...]
    """The utility of each segment."""
    whole: float
    """The utility of the clip."""


def assess(seen: Sequence[SeenFrame], caption: str, annotator: str) -> Judgement:
    """How much an annotator likes a clip for a caption, segment by segment and as a whole.

    Args:
        seen: What `diffpo.worlds.moving.verify.see` sees in the clip.
        caption: A caption of the grammar.
        annotator: A `user_id`.

    Raises:
        ValueError: If the annotator is unknown or the caption is not of the grammar.
    """
    if annotator not in ANNOTATORS:
        raise ValueError(f"unknown annotator {annotator!r}; choose one of {sorted(ANNOTATORS)}")
    person, spec = ANNOTATORS[annotator], parse_caption(caption)
    objects = [subject(frame, spec) for frame in seen]
    segments = tuple(_utility(seen, objects, spec, segment, person) for segment in range(SEGMENTS))
    return Judgement(segments, sum(segments) / SEGMENTS - person.calm * amplitude(objects))


def tie_threshold(differences: Sequence[float], ties: float = TIE_SHARE) -> float:
    """The difference of utilities below which a share `ties` of those given lie."""
    return float(np.quantile(np.abs(differences), ties))


def label(difference: float, threshold: float, generator: torch.Generator) -> int:
    """One noisy choice from utility 0 minus utility 1: 1 for clip 0, -1 for clip 1, 0 a tie."""
    u, flip = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    if abs(difference) <= threshold:
        return 0
    prefers_0 = u < 0.5 + 0.5 * tanh(0.5 * difference / max(threshold, 1e-9))  # a sigmoid
    return 1 if prefers_0 != (flip < FLIP_RATE) else -1


def _utility(
    seen: Sequence[SeenFrame], objects: Sequence[FoundObject | None], spec: ClipSpec, segment: int, person: Annotator
) -> float:
    own = frames_of(segment)
    right = [
        len(seen[frame].objects) == 1
        and (item := objects[frame]) is not None
        and (item.color, item.shape) == (spec.color, spec.shape)
        for frame in own
    ]
    clarity = [_clarity(objects[frame], spec) for frame in own]
    flicker, jumps = _unrest(seen, objects, segment)
    return (
        person.object * (sum(right) / len(own) - 0.5 * _astray(objects, spec, segment))
        + person.clarity * sum(clarity) / len(own)
        - person.flicker * flicker
        - person.jumps * jumps
    )


def _clarity(item: FoundObject | None, spec: ClipSpec) -> float:
    if item is None or item.shape != spec.shape:
        return 0.0
    return min(1.0, max(0.0, (item.overlap - BLURRED) / (CLEAR - BLURRED)))


def _unrest(seen: Sequence[SeenFrame], objects: Sequence[FoundObject | None], segment: int) -> tuple[float, float]:
    """Flicker and jumps, each 1 where a change is as large as the verifier allows; 2, the worst, without an object."""
    changed = changes(seen, objects, segment)
    if changed is None:
        return 2.0, 2.0
    parts = {name: changed[name] / most for name, most in MAX_CHANGES.items()}
    jumps = parts.pop("pace")
    return min(2.0, max(parts.values())), min(2.0, jumps)


def _astray(objects: Sequence[FoundObject | None], spec: ClipSpec, segment: int) -> bool:
    """Whether the object moves, and moves another way than the caption says."""
    velocity = segment_velocity(objects, segment)
    moves = velocity is not None and max(map(abs, velocity)) >= MIN_SPEED
    return moves and not heads_right(velocity, spec)
