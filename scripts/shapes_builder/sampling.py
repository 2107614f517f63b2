"""Draws what a caption of the shapes world leaves open: sizes, places, colours. What is trained on is drawn so."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffpo.worlds.shapes.scenes import (
    BACKGROUNDS,
    EXTENTS,
    IMAGE_SIZE,
    Placement,
    Scene,
    SceneSpec,
    Split,
    parse_caption,
    split_captions,
)

MARGIN = 1.5  # pixels kept free at the border
GAP = 2.5  # pixels kept free between the objects


@dataclass(frozen=True)
class Style:
    """How pictures are drawn where the caption is silent.

    A value is `low + (high - low) * u ** skew` with u uniform in [0, 1). A skew above 1 makes small values common:
    this is what the base model learns and what the annotators dislike.
    """

    size: tuple[float, float] = (8.0, 13.5)
    size_skew: float = 2.0
    saturation: tuple[float, float] = (0.45, 1.0)
    saturation_skew: float = 1.7
    value: tuple[float, float] = (0.8, 1.0)
    spread: float = 1.0
    """How far positions stray from the middle of what is possible: 1 anywhere, 0 not at all."""


BASE_STYLE = Style(size=(9.0, 14.0), spread=0.25)
WIDE_STYLE = Style(size=(6.5, 16.0), size_skew=1.0, saturation=(0.35, 1.0), saturation_skew=1.0, value=(0.75, 1.0))


def sample_specs(split: Split, n: int, generator: torch.Generator) -> list[SceneSpec]:
    """`n` specs of a split, drawn with replacement."""
    captions = split_captions(split)
    return [parse_caption(captions[i]) for i in torch.randint(len(captions), (n,), generator=generator).tolist()]


def sample_scenes(specs: Sequence[SceneSpec], generator: torch.Generator, style: Style = BASE_STYLE) -> list[Scene]:
    """Fill in, for each spec, what the caption leaves open."""
    draws = torch.rand(len(specs), 14, generator=generator, dtype=torch.float64).tolist()
    return [_place(spec, u, style) for spec, u in zip(specs, draws, strict=True)]


def _place(spec: SceneSpec, u: list[float], style: Style) -> Scene:
    """Lay out one scene from 14 uniform numbers, so that both objects are inside and stand in the relation."""
    horizontal = spec.relation in ("left of", "right of")
    extents = [EXTENTS[item.shape] for item in (spec.first, spec.second)]
    # How far an object reaches before and behind its centre, per unit of size: along the axis of the relation, across.
    reaches = [
        ((width, width), (up, down)) if horizontal else ((up, down), (width, width)) for width, up, down in extents
    ]
    sizes = [_between(style.size, u[0], style.size_skew), _between(style.size, u[1], style.size_skew)]
    needed = sum(size * sum(reach) for size, (reach, _) in zip(sizes, reaches, strict=True))
    room = IMAGE_SIZE - 2 * MARGIN - GAP
    if needed > room:  # two large ones do not fit: shrink both alike
        sizes = [size * room / needed for size in sizes]
        needed = room
    order = (0, 1) if spec.relation in ("left of", "above") else (1, 0)  # who comes first along the axis
    before, after = (mean + style.spread * (x - mean) for mean, x in zip((1 / 3, 2 / 3), sorted(u[2:4]), strict=True))
    aside, apart = (0.5 + style.spread * (x - 0.5) for x in u[4:6])
    free = room - needed
    along = [0.0, 0.0]
    cursor = MARGIN + before * free
    for i in order:
        low, high = reaches[i][0]
        along[i] = cursor + low * sizes[i]
        cursor = along[i] + high * sizes[i] + (GAP + (after - before) * free)
    ends = zip(reaches, sizes, strict=True)
    (least, most), (low, high) = ((MARGIN + r[0] * size, IMAGE_SIZE - MARGIN - r[1] * size) for (_, r), size in ends)
    across = [least + aside * (most - least), 0.0]
    across[1] = min(max(across[0] + (2 * apart - 1) * 0.5 * abs(along[0] - along[1]), low), high)
    placements = [
        Placement(
            *((along[i], across[i]) if horizontal else (across[i], along[i])),
            size=sizes[i],
            saturation=_between(style.saturation, u[6 + i], style.saturation_skew),
            value=_between(style.value, u[8 + i], 1.0),
            hue_shift=10.0 * (u[10 + i] - 0.5),
        )
        for i in (0, 1)
    ]
    return Scene(spec, *placements, background_level=BACKGROUNDS[spec.background] + 0.06 * (u[12] - 0.5))


def _between(limits: tuple[float, float], u: float, skew: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * u**skew
