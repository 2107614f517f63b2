"""From a decoded picture to the pixels that an encoder takes: resize, flip, crop.

Both images of a pair are treated alike: the same target size, the same relative crop window, flipped together or not at
all. Flip and window depend on (seed, row) alone, so they are the same in every epoch and part of the key of the
encoding cache.

    resize so that the image just covers the target (Lanczos) -> flip -> crop
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from diffpo.core.types import Rng
from diffpo.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from diffpo.data.records import Source

ASPECTS = (1 / 2, 9 / 16, 2 / 3, 3 / 4, 1.0, 4 / 3, 3 / 2, 16 / 9, 2.0)
"""Width over height of the buckets."""


@dataclass(frozen=True)
class Prepared:
    """An image as an encoder takes it."""

    pixels: Tensor
    """`[3 h w]` float32 in [-1, 1]."""
    size: Tensor
    """`[6]` int64: original height and width, top and left of the crop in the resized (and flipped) image, target
    height and width."""


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


def prepare(image: Image.Image, target: tuple[int, int], index: int, source: Source, seed: int) -> Prepared:
    """Resize, flip and crop one image of the pair in row `index` to the height and width of `target`."""
    from PIL import Image, ImageOps

    draws = Rng(seed, 0, torch.tensor([index]))
    height, width = target
    scale = max(height / image.height, width / image.width)
    covering = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    resized = image if covering == image.size else image.resize(covering, Image.Resampling.LANCZOS)
    if source.flip and draws.uniform("flip").item() < 0.5:
        resized = ImageOps.mirror(resized)
    top, left = 0.5, 0.5
    if source.crop == "random":
        top, left = draws.uniform("crop/top").item(), draws.uniform("crop/left").item()
    top, left = round(top * (resized.height - height)), round(left * (resized.width - width))
    pixels = np.array(resized.crop((left, top, left + width, top + height)), np.float32) / 127.5 - 1.0
    size = torch.tensor([image.height, image.width, top, left, height, width])
    return Prepared(torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), size)


def _round_to(value: float, multiple: int) -> int:
    return max(1, round(value / multiple)) * multiple
