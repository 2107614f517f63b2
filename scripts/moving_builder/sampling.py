"""Draws what a caption of the moving world leaves open: sizes, places, colours, faults. Models are trained on that."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from diffpo.worlds.moving.scenes import (
    BACKGROUNDS,
    DIRECTIONS,
    FRAME_SIZE,
    MIDDLE,
    SEGMENTS,
    SPEEDS,
    Clip,
    ClipSpec,
    parse_caption,
    split_captions,
)
from diffpo.worlds.shapes.scenes import EXTENTS
from diffpo.worlds.splits import Split

MARGIN = 0.5  # pixels kept free at the border
FADES = (0.1, 0.4)
"""Probability that the colour turns pale in a segment, for the slowest and for the fastest motion."""


@dataclass(frozen=True)
class Style:
    """How clips are drawn where the caption is silent; all ranges are uniform."""

    size: tuple[float, float] = (4.8, 5.8)
    saturation: tuple[float, float] = (0.65, 1.0)
    value: tuple[float, float] = (0.85, 1.0)
    hue_shift: float = 4.0
    spread: float = 1.5
    """How many pixels the path may pass beside the middle of the picture."""
    background: float = 0.02
    """How far the background's gray level may be from its own."""


BASE_STYLE = Style()
WIDE_STYLE = Style(size=(4.0, 6.2), saturation=(0.45, 1.0), value=(0.7, 1.0), hue_shift=8.0, spread=4.0)


def sample_specs(split: Split, n: int, generator: torch.Generator) -> list[ClipSpec]:
    """`n` specs of a split, drawn with replacement."""
    captions = split_captions(split)
    return [parse_caption(captions[i]) for i in torch.randint(len(captions), (n,), generator=generator).tolist()]


def sample_clips(specs: Sequence[ClipSpec], generator: torch.Generator, style: Style = BASE_STYLE) -> list[Clip]:
    """Fill in, for each spec, what the caption leaves open."""
    draws = torch.rand(len(specs), 8, generator=generator, dtype=torch.float64).tolist()
    return [_place(spec, u, style) for spec, u in zip(specs, draws, strict=True)]


def spoil(clips: Sequence[Clip], generator: torch.Generator) -> list[Clip]:
    """Let the colour of some clips turn pale on the way, the faster they move the more often.

    What a base model is trained on is not flawless, and what moves fast is the harder to film. So the model makes such
    faults, too, and people who dislike them choose the slower one of two clips without meaning to.
    """
    low, high = SPEEDS[""]
    draws = torch.rand(len(clips), SEGMENTS, generator=generator, dtype=torch.float64).tolist()
    spoiled = []
    for clip, row in zip(clips, draws, strict=True):
        hazard = _between(FADES, (clip.speed - low) / (high - low))
        spoiled.append(replace(clip, pale_from=next((i for i, u in enumerate(row) if u < hazard), SEGMENTS)))
    return spoiled


def _place(spec: ClipSpec, u: Sequence[float], style: Style) -> Clip:
    """Lay out one clip from 8 uniform numbers, so that the shape is inside in every frame."""
    size = _between(style.size, u[0])
    speed = _between(SPEEDS[spec.speed], u[1])
    half_width, up, down = (size * extent for extent in EXTENTS[spec.shape])
    aside = [FRAME_SIZE / 2 + style.spread * (2 * x - 1) for x in u[2:4]]
    way = [speed * MIDDLE * abs(step) for step in DIRECTIONS[spec.direction]]
    before, after = (half_width, up), (half_width, down)
    x, y = (min(max(aside[i], MARGIN + before[i] + way[i]), FRAME_SIZE - MARGIN - after[i] - way[i]) for i in (0, 1))
    return Clip(
        spec,
        x,
        y,
        size,
        speed,
        saturation=_between(style.saturation, u[4]),
        value=_between(style.value, u[5]),
        hue_shift=style.hue_shift * (2 * u[6] - 1),
        background_level=BACKGROUNDS[spec.background] + style.background * (2 * u[7] - 1),
    )


def _between(limits: tuple[float, float], u: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * u
