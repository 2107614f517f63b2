"""Checks a clip against its caption, exactly, segment by segment.

In every segment five things are right or wrong:

    present     every frame shows exactly one object
    color       it has the caption's colour in every frame
    shape       and the caption's shape
    direction   it moves where the caption says
    steady      nothing flickers or jumps: size, colour tone, background and pace stay

and two in the whole clip: `speed`, where the caption names one, and `background`. Each frame is seen as the shapes
world sees a picture. A segment's motion runs from the last frame of the segment before it to its own last frame. Its
velocity is the mean of its steps weighted by how much of the object both frames show, so that an object that fades does
not count by where its last pixels happen to lie.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from diffpo.worlds.moving.render import to_uint8
from diffpo.worlds.moving.scenes import (
    BACKGROUNDS,
    DIRECTIONS,
    FRAME_SIZE,
    FRAMES,
    SEGMENTS,
    SHAPES,
    ClipSpec,
    parse_caption,
    segment_of,
)
from diffpo.worlds.shapes.verify import FoundObject, find_objects, plain_gray

MIN_SPEED = 0.3  # pixels per frame along the caption's direction: half of the slowest drawn motion
MAX_ASLANT = 0.5  # motion across the direction, as a share of the motion along it
SLOW_BELOW = 1.2  # pixels per frame: "slowly" is below it, "fast" above
MAX_CHANGES = {"area": 0.25, "saturation": 0.15, "value": 0.12, "background": 0.05, "pace": 1.0}
"""The largest steady changes from frame to frame.

`area` is relative, `pace` the pixels by which a step differs from the segment's velocity; the others lie in [0, 1].
"""

ClipLike = np.ndarray | torch.Tensor | Sequence[Image.Image]


@dataclass(frozen=True)
class SeenFrame:
    """All that is seen in one frame: its objects, the largest first, and the background's gray (None: not plain)."""

    objects: tuple[FoundObject, ...]
    gray: float | None


class SegmentVerdict(NamedTuple):
    """Which attributes of the caption one segment shows."""

    present: bool
    color: bool
    shape: bool
    direction: bool
    steady: bool

    @property
    def passed(self) -> bool:
        """Whether all are right."""
        return all(self)


@dataclass(frozen=True)
class Verdict:
    """Which attributes of the caption a clip shows, segment by segment and as a whole."""

    segments: tuple[SegmentVerdict, ...]
    speed: bool
    background: bool

    @property
    def attributes(self) -> dict[str, float]:
        """The seven attributes by name, in the order of `ATTRIBUTES`: the share of the segments that show each."""
        shares = {name: sum(getattr(s, name) for s in self.segments) / SEGMENTS for name in SegmentVerdict._fields}
        return shares | {"speed": float(self.speed), "background": float(self.background)}

    @property
    def score(self) -> float:
        """Mean of the seven attributes, in [0, 1]."""
        return sum(self.attributes.values()) / len(ATTRIBUTES)

    @property
    def passed(self) -> bool:
        """Whether the whole clip is right."""
        return self.speed and self.background and all(segment.passed for segment in self.segments)


ATTRIBUTES = (*SegmentVerdict._fields, "speed", "background")


def verify(clip: ClipLike, caption: str) -> Verdict:
    """Check one clip.

    Args:
        clip: uint8 `[9 32 32 3]`, a float tensor `[3 9 32 32]` in [0, 1], or nine PIL images of 32x32.
        caption: A caption of the grammar.

    Raises:
        ValueError: If the caption is not of the grammar, or the clip has another length or size.
    """
    return judge(see(clip), parse_caption(caption))


def motion(clip: ClipLike) -> float:
    """How far the object moves, in pixels per frame, wherever it goes; 0 where none is seen.

    Raises:
        ValueError: As for `verify`.
    """
    return amplitude([largest(frame) for frame in see(clip)])


def judge(seen: Sequence[SeenFrame], spec: ClipSpec) -> Verdict:
    """Compare what is seen with what is asked."""
    objects = [subject(frame, spec) for frame in seen]
    velocities = [segment_velocity(objects, segment) for segment in range(SEGMENTS)]
    segments = tuple(_judge_segment(seen, objects, spec, segment) for segment in range(SEGMENTS))
    along = [_turned(velocity, spec)[0] for velocity in velocities if velocity is not None]
    pace = sum(along) / len(along) if along else 0.0
    grays = [frame.gray for frame in seen]
    return Verdict(
        segments,
        speed={"slowly": pace < SLOW_BELOW, "fast": pace >= SLOW_BELOW, "": True}[spec.speed],
        background=all(gray is not None and _background(gray) == spec.background for gray in grays),
    )


def see(clip: ClipLike) -> tuple[SeenFrame, ...]:
    """Find objects and background of every frame (same kinds of clip as `verify`)."""
    pictures = _to_array(clip).astype(np.float32) / 255
    return tuple(SeenFrame(find_objects(rgb, SHAPES), plain_gray(rgb)) for rgb in pictures)


def largest(frame: SeenFrame) -> FoundObject | None:
    """The largest object of a frame."""
    return frame.objects[0] if frame.objects else None


def subject(frame: SeenFrame, spec: ClipSpec) -> FoundObject | None:
    """The object that the caption speaks of: the largest one of its colour, or else the largest one."""
    return next((item for item in frame.objects if item.color == spec.color), largest(frame))


def frames_of(segment: int) -> range:
    """The frames of a segment."""
    own = [frame for frame in range(FRAMES) if segment_of(frame) == segment]
    return range(own[0], own[-1] + 1)


def steps_of(segment: int) -> list[tuple[int, int]]:
    """The steps from frame to frame that end in a segment."""
    return [(frame - 1, frame) for frame in frames_of(segment) if frame > 0]


def segment_velocity(objects: Sequence[FoundObject | None], segment: int) -> tuple[float, float] | None:
    """Pixels per frame to the right and downwards; None where no two neighbouring frames show an object."""
    velocity, weight = _mean_step(objects, steps_of(segment))
    return velocity if weight > 0 else None


def amplitude(objects: Sequence[FoundObject | None]) -> float:
    """Mean over the segments of the length of the velocity, weighted by how much of the object they show."""
    means = [_mean_step(objects, steps_of(segment)) for segment in range(SEGMENTS)]
    total = sum(weight for _, weight in means)
    return sum(hypot(*velocity) * weight for velocity, weight in means) / total if total > 0 else 0.0


def changes(seen: Sequence[SeenFrame], objects: Sequence[FoundObject | None], segment: int) -> dict[str, float] | None:
    """The largest change of each kind in a segment (see `MAX_CHANGES`); None where a frame lacks object or gray."""
    velocity = segment_velocity(objects, segment)
    found: dict[str, list[float]] = {name: [] for name in MAX_CHANGES}
    for before, after in steps_of(segment):
        a, b, gray_a, gray_b = objects[before], objects[after], seen[before].gray, seen[after].gray
        if a is None or b is None or gray_a is None or gray_b is None:
            return None
        assert velocity is not None
        found["area"].append(abs(a.area - b.area) / max(a.area, b.area))
        found["saturation"].append(abs(a.saturation - b.saturation))
        found["value"].append(abs(a.value - b.value))
        found["background"].append(abs(gray_a - gray_b))
        found["pace"].append(hypot(b.x - a.x - velocity[0], b.y - a.y - velocity[1]))
    return {name: max(values) for name, values in found.items()}


def heads_right(velocity: tuple[float, float] | None, spec: ClipSpec) -> bool:
    """Whether a velocity is a motion in the caption's direction."""
    if velocity is None:
        return False
    along, across = _turned(velocity, spec)
    return along >= MIN_SPEED and abs(across) <= MAX_ASLANT * along


def _judge_segment(
    seen: Sequence[SeenFrame], objects: Sequence[FoundObject | None], spec: ClipSpec, segment: int
) -> SegmentVerdict:
    own = frames_of(segment)
    changed = changes(seen, objects, segment)
    return SegmentVerdict(
        present=all(len(seen[frame].objects) == 1 for frame in own),
        color=all((item := objects[frame]) is not None and item.color == spec.color for frame in own),
        shape=all((item := objects[frame]) is not None and item.shape == spec.shape for frame in own),
        direction=heads_right(segment_velocity(objects, segment), spec),
        steady=changed is not None and all(changed[name] <= most for name, most in MAX_CHANGES.items()),
    )


def _mean_step(
    objects: Sequence[FoundObject | None], steps: Sequence[tuple[int, int]]
) -> tuple[tuple[float, float], float]:
    """The mean step, weighted by the smaller area of its two ends, and the sum of the weights."""
    ends = [(objects[before], objects[after]) for before, after in steps]
    moves = [(min(a.area, b.area), b.x - a.x, b.y - a.y) for a, b in ends if a is not None and b is not None]
    weight = sum(move[0] for move in moves)
    if weight <= 0:
        return (0.0, 0.0), 0.0
    return (sum(w * x for w, x, _ in moves) / weight, sum(w * y for w, _, y in moves) / weight), weight


def _turned(velocity: tuple[float, float], spec: ClipSpec) -> tuple[float, float]:
    """A velocity along the caption's direction and across it."""
    right, down = DIRECTIONS[spec.direction]
    return velocity[0] * right + velocity[1] * down, velocity[0] * down - velocity[1] * right


def _background(gray: float) -> str:
    return min(BACKGROUNDS, key=lambda name: abs(BACKGROUNDS[name] - gray))


def _to_array(clip: ClipLike) -> np.ndarray:
    """Any accepted clip -> uint8 `[9 32 32 3]`."""
    if isinstance(clip, torch.Tensor):
        if clip.ndim != 4 or not clip.is_floating_point():
            raise ValueError(f"expected a float tensor [3 9 32 32] in [0, 1], got {tuple(clip.shape)} of {clip.dtype}")
        array = to_uint8(clip.detach().float().unsqueeze(0))[0]
    elif isinstance(clip, np.ndarray):
        array = clip
    else:
        array = np.stack([np.asarray(frame.convert("RGB")) for frame in clip])
    if array.shape != (FRAMES, FRAME_SIZE, FRAME_SIZE, 3) or array.dtype != np.uint8:
        raise ValueError(
            f"expected {FRAMES} RGB frames of {FRAME_SIZE}x{FRAME_SIZE} in uint8, got {array.shape} of {array.dtype}"
        )
    return array
