"""From a decoded image or clip to the pixels that an encoder takes: resize, flip, crop.

Both sides of a pair are treated alike: the same target size, the same relative crop window, flipped together or not at
all. Flip and window depend on (seed, row) alone, so they are the same in every epoch. They are part of the key under
which the encoding is kept.

    resize so that the image just covers the target (Lanczos) -> flip -> crop
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from diffpo.core.types import Rng
from diffpo.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from diffpo.data.records import Source
    from diffpo.media.frames import Clip

ASPECTS = (1 / 2, 9 / 16, 2 / 3, 3 / 4, 1.0, 4 / 3, 3 / 2, 16 / 9, 2.0)
"""Width over height of the buckets."""


@dataclass(frozen=True)
class Window:
    """What is drawn for a row: how its images are flipped and cropped."""

    flip: bool = False
    """Whether they are mirrored."""
    top: float = 0.5
    """Where the crop begins, as a share of the rows that do not fit."""
    left: float = 0.5
    """As a share of the columns that do not fit."""


CENTRE = Window()


@dataclass(frozen=True)
class Prepared:
    """An image or a clip as an encoder takes it."""

    frames: Tensor
    """`[3 f h w]` float32 in [-1, 1]; f = 1 for an image."""
    size: Tensor
    """`[6]` int64: original height and width, top and left of the crop in the resized (and flipped) image, target
    height and width."""


def draw_window(source: Source, seed: int, index: int) -> Window:
    """Draw how the images of a row are flipped and cropped."""
    if not (source.flip or source.crop == "random"):
        return CENTRE
    draws, window = Rng(seed, 0, torch.tensor([index])), CENTRE
    if source.flip:
        window = replace(window, flip=draws.uniform("flip").item() < 0.5)
    if source.crop == "random":
        window = replace(window, top=draws.uniform("crop/top").item(), left=draws.uniform("crop/left").item())
    return window


def target_sizes(source: Source, multiple: int) -> list[tuple[int, int]]:
    """Heights and widths in pixels that images are brought to: one, or with `buckets` one per aspect.

    Raises:
        UserError: The encoder cannot take `resolution`.
    """
    resolution = source.resolution
    if source.buckets:
        if resolution < 2 * multiple:
            raise UserError(
                f"data.resolution={resolution} is too small for buckets: the sides must be multiples of {multiple}."
            )
        sizes = [
            (_round_to(resolution / math.sqrt(a), multiple), _round_to(resolution * math.sqrt(a), multiple))
            for a in ASPECTS
        ]
        return list(dict.fromkeys(sizes))
    if resolution % multiple:
        below = resolution // multiple * multiple
        nearest = " or ".join(str(size) for size in (below, below + multiple) if size)
        raise UserError(
            f"data.resolution={resolution} does not fit this model: it takes multiples of {multiple}. Use {nearest}."
        )
    return [(resolution, resolution)]


def choose_target(sizes: Sequence[tuple[int, int]], height: int, width: int) -> tuple[int, int]:
    """Choose the height and width whose aspect is nearest to an image's, as a ratio."""
    return min(sizes, key=lambda size: abs(math.log(size[1] / size[0] * height / width)))


def prepare(clip: Clip, target: tuple[int, int], window: Window) -> Prepared:
    """Resize, flip and crop a clip to the height and width of `target`: every frame in the same way."""
    height, width = target
    first = clip.first
    scale = max(height / first.height, width / first.width)
    covering = max(width, round(first.width * scale)), max(height, round(first.height * scale))
    top, left = round(window.top * (covering[1] - height)), round(window.left * (covering[0] - width))
    frames = np.stack(
        [_cut(frame, covering, window.flip, (left, top, left + width, top + height)) for frame in clip.frames]
    )
    size = torch.tensor([first.height, first.width, top, left, height, width])
    return Prepared(torch.from_numpy(frames).permute(3, 0, 1, 2).contiguous(), size)


def _cut(frame: Image.Image, covering: tuple[int, int], flip: bool, box: tuple[int, int, int, int]) -> np.ndarray:
    """Bring one frame to `[h w 3]` in [-1, 1]."""
    from PIL import Image, ImageOps

    resized = frame if covering == frame.size else frame.resize(covering, Image.Resampling.LANCZOS)
    if flip:
        resized = ImageOps.mirror(resized)
    return np.array(resized.crop(box), np.float32) / 127.5 - 1.0


def _round_to(value: float, multiple: int) -> int:
    return max(1, round(value / multiple)) * multiple
