"""Checks a picture against its caption, exactly, in the manner of GenEval: seven attributes, each right or wrong.

How it sees: backgrounds are grays and objects are not, and mixing a colour with gray keeps its hue, so chroma =
max(rgb) - min(rgb) separates objects from background and hue separates objects from each other, also where edges are
blurred. Connected pixels of one hue class are one object; its shape is the template of equal area and centroid that
overlaps it most (soft IoU).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from diffpo.worlds.shapes.render import signed_distance, to_uint8
from diffpo.worlds.shapes.scenes import BACKGROUNDS, COLORS, HUES, IMAGE_SIZE, SHAPES, SceneSpec, parse_caption

UNKNOWN = "unknown"

MIN_CHROMA = 0.15  # below: background
MIN_AREA = 30  # pixels; smaller specks are no objects (the smallest drawn object has 55)
MIN_OVERLAP = 0.7  # soft IoU with the best template; below: no shape of this world
MIN_PLAIN = 0.8  # share of the background pixels that must be close to their median
PLAIN_TOLERANCE = 0.12

# Area of each shape of size 1, to turn an area into the size of its template.
UNIT_AREA = {
    "circle": np.pi,
    "square": 3.24,
    "triangle": 0.75 * 3**0.5 * 1.69,
    "cross": 2 * 2.2 * 0.76 - 0.76**2,
    "bar": 3.12,
}

ImageLike = Image.Image | np.ndarray | torch.Tensor


@dataclass(frozen=True)
class FoundObject:
    """One object as the verifier sees it. Pixels; `saturation` and `value` as in HSV."""

    color: str
    shape: str
    x: float
    y: float
    area: float
    saturation: float
    value: float
    overlap: float


@dataclass(frozen=True)
class Seen:
    """All that is seen in a picture: its objects, the largest first, and its background (or "unknown")."""

    objects: tuple[FoundObject, ...]
    background: str


class Verdict(NamedTuple):
    """Which attributes of the caption the picture shows."""

    objects: bool
    color1: bool
    shape1: bool
    color2: bool
    shape2: bool
    relation: bool
    background: bool

    @property
    def score(self) -> float:
        """Share of the attributes that are right."""
        return sum(self) / len(self)

    @property
    def passed(self) -> bool:
        """Whether all are right."""
        return all(self)


ATTRIBUTES = Verdict._fields


def verify(image: ImageLike, caption: str) -> Verdict:
    """Check one picture.

    Args:
        image: PIL, uint8 `[64 64 3]`, or a float tensor `[3 64 64]` in [0, 1].
        caption: A caption of the grammar.

    Raises:
        ValueError: If the caption is not of the grammar or the image is not 64x64 RGB.
    """
    return judge(see(image), parse_caption(caption))


def judge(seen: Seen, spec: SceneSpec) -> Verdict:
    """Compare what is seen with what is asked, in the assignment of objects that is kindest to the picture."""
    verdicts = [
        Verdict(
            objects=len(seen.objects) == 2,
            color1=first is not None and first.color == spec.first.color,
            shape1=first is not None and first.shape == spec.first.shape,
            color2=second is not None and second.color == spec.second.color,
            shape2=second is not None and second.shape == spec.second.shape,
            relation=first is not None and second is not None and relation_between(first, second) == spec.relation,
            background=seen.background == spec.background,
        )
        for first, second in permutations([*seen.objects[:2], None, None][:2])
    ]
    return max(verdicts, key=lambda verdict: verdict.score)


def see(image: ImageLike, alike: Sequence[str] = ()) -> Seen:
    """Find the objects and the background of one picture (same kinds of image as `verify`; `alike` as below)."""
    rgb = to_array(image).astype(np.float32) / 255
    gray = plain_gray(rgb)
    background = UNKNOWN if gray is None else min(BACKGROUNDS, key=lambda name: abs(BACKGROUNDS[name] - gray))
    return Seen(find_objects(rgb, alike=alike), background)


def find_objects(rgb: np.ndarray, shapes: Sequence[str] = SHAPES, alike: Sequence[str] = ()) -> tuple[FoundObject, ...]:
    """Find the objects of a picture, the largest first.

    Args:
        rgb: float32 `[h w 3]` in [0, 1].
        shapes: What an object may be; one that looks like none of them is "unknown".
        alike: Colours that one object may have together.
    """
    chroma = rgb.max(-1) - rgb.min(-1)
    colored = chroma > MIN_CHROMA
    classes, owner = np.full(chroma.shape, -1), np.full(chroma.shape, -1)
    kind = np.array([COLORS.index(alike[0] if color in alike else color) for color in COLORS])
    classes[colored] = kind[_nearest_color(rgb[colored])]
    for index in np.unique(classes[colored]):
        labels, _ = ndimage.label(classes == index)
        for part in np.flatnonzero(np.bincount(labels.ravel())[1:] >= MIN_AREA) + 1:
            owner[labels == part] = owner.max() + 1
    found = [_describe(rgb, chroma, owner, number, shapes) for number in range(owner.max() + 1)]
    return tuple(sorted(found, key=lambda item: -item.area))


def plain_gray(rgb: np.ndarray) -> float | None:
    """The background's gray level; None where too little of `rgb`, `[h w 3]`, is gray or it is not plain."""
    gray = rgb.mean(-1)[rgb.max(-1) - rgb.min(-1) < MIN_CHROMA]
    if gray.size < 0.2 * rgb[..., 0].size:
        return None
    middle = float(np.median(gray))
    return middle if (np.abs(gray - middle) < PLAIN_TOLERANCE).mean() >= MIN_PLAIN else None


def to_array(image: ImageLike) -> np.ndarray:
    """Any accepted image -> uint8 `[64 64 3]`."""
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    elif isinstance(image, torch.Tensor):
        if image.ndim != 3 or not image.is_floating_point():
            raise ValueError(f"expected a float tensor [3 64 64] in [0, 1], got {tuple(image.shape)} of {image.dtype}")
        image = to_uint8(image.detach().float().unsqueeze(0))[0]
    if image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3) or image.dtype != np.uint8:
        raise ValueError(f"expected a {IMAGE_SIZE}x{IMAGE_SIZE} RGB image of uint8, got {image.shape} of {image.dtype}")
    return image


def _nearest_color(rgb: np.ndarray) -> np.ndarray:
    """Index into `COLORS` of the nearest hue on the circle, `[...]` for `[... 3]`."""
    return hue_distance(rgb, list(HUES.values())).argmin(-1)


def hue_distance(rgb: np.ndarray, hues: Sequence[float]) -> np.ndarray:
    """How far the hues of pixels, `[... 3]`, lie from `n` hues on the circle: `[... n]`, in degrees."""
    red, green, blue = np.moveaxis(rgb, -1, 0)
    largest = rgb.max(-1)
    chroma = np.maximum(largest - rgb.min(-1), 1e-6)
    sector = np.select(
        [largest == red, largest == green],
        [((green - blue) / chroma) % 6, (blue - red) / chroma + 2],
        (red - green) / chroma + 4,
    )
    return np.abs((60 * sector[..., None] - np.array(hues) + 180) % 360 - 180)


def _describe(
    rgb: np.ndarray, chroma: np.ndarray, owner: np.ndarray, number: int, shapes: Sequence[str]
) -> FoundObject:
    """Colour, shape and measures of the object that owns the pixels where `owner` (-1: nobody's) is its number.

    A pixel's share in the object is its chroma relative to the object's own, made a little steeper so that noise in the
    background counts as nothing and noise inside as full.
    """
    rows, columns = np.nonzero(owner == number)
    window = tuple(slice(max(0, axis.min() - 3), axis.max() + 4) for axis in (rows, columns))
    rgb, chroma, owner = rgb[window], chroma[window], owner[window]
    part = owner == number
    full = np.quantile(chroma[part], 0.8)
    near = ndimage.binary_dilation(part, iterations=2) & ((owner == number) | (owner < 0))
    alpha = np.clip((chroma / full - 0.15) / 0.7, 0, 1) * near
    area = float(alpha.sum())
    grid_y, grid_x = (np.arange(s.start, s.start + n) + 0.5 for s, n in zip(window, alpha.shape, strict=True))
    x, y = float(alpha.sum(0) @ grid_x) / area, float(alpha.sum(1) @ grid_y) / area
    shape, overlap = _shape(alpha, grid_x - x, grid_y - y, area, shapes)
    mean = rgb[part & (chroma > 0.8 * full)].mean(0, keepdims=True)
    saturation, value = float((mean.max() - mean.min()) / mean.max()), float(mean.max())
    return FoundObject(COLORS[_nearest_color(mean)[0]], shape, x, y, area, saturation, value, overlap)


def _shape(alpha: np.ndarray, dx: np.ndarray, dy: np.ndarray, area: float, shapes: Sequence[str]) -> tuple[str, float]:
    """The shape whose template of equal area and centroid overlaps most; the soft IoU (sum of minima / maxima)."""
    overlaps = {}
    for name in shapes:
        size = (area / UNIT_AREA[name]) ** 0.5
        template = np.clip(0.5 - signed_distance(name, dx[None, :], dy[:, None], size), 0, 1)
        overlaps[name] = float(np.minimum(template, alpha).sum() / np.maximum(template, alpha).sum())
    best = max(overlaps, key=overlaps.__getitem__)
    return (best if overlaps[best] >= MIN_OVERLAP else UNKNOWN), overlaps[best]


def relation_between(first: FoundObject, second: FoundObject) -> str:
    """How `first` stands to `second`: along the axis on which their centroids differ more."""
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"
