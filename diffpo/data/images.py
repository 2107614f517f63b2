"""From a decoded image or clip to the pixels that an encoder takes: resize, flip, crop.

Both sides of a pair are treated alike: the same target size, the same relative crop window, flipped together or not at
all. Flip and window depend on (seed, row) alone, so they are the same in every epoch. They are part of the key under
which the encoding is kept.

    choose frames (`lengths`) -> resize so that the image just covers the target (Lanczos) -> flip -> crop

A frame is decoded, resized and cropped before the next one is decoded: memory grows with what is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from diffpo.core.types import Rng
from diffpo.data.latents import read_latents
from diffpo.errors import UserError
from diffpo.media.frames import BrokenImage, open_footage

if TYPE_CHECKING:
    from PIL import Image

    from diffpo.data.lengths import Lengths
    from diffpo.data.records import Source
    from diffpo.media.footage import FrameRule

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

    pixels: np.ndarray
    """`[f h w 3]` uint8; f = 1 for an image."""
    size: Tensor
    """`[6]` int64: original height and width, top and left of the crop in the resized (and flipped) image, target
    height and width."""

    latent: Tensor | None = None
    """`[c f h w]` what the clip was decoded from, where that is known and nothing of the clip was changed."""

    @property
    def frames(self) -> Tensor:
        """`[3 f h w]` uint8: a view."""
        return torch.from_numpy(self.pixels).permute(3, 0, 1, 2)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes without tensors, which torch would lay into the little memory that they share."""
        return _arrived, (self.pixels, self.size.tolist(), None if self.latent is None else self.latent.numpy())


def _arrived(pixels: np.ndarray, size: list[int], latent: np.ndarray | None) -> Prepared:
    return Prepared(pixels, torch.tensor(size), None if latent is None else torch.from_numpy(latent))


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


@dataclass(frozen=True)
class Preparation:
    """How the images and clips of a table become pixels."""

    source: Source
    multiple: int
    """The encoder takes sides that are divisible by this."""
    rule: FrameRule
    """The clips that the encoder takes."""
    seed: int
    """What flips and random crops depend on."""
    sides: Sequence[str]
    """Those that are used; the first one decides the size of both."""
    lengths: Lengths
    latents: Mapping[str, Mapping[int, Path]] = field(default_factory=dict)
    """By side and row, files of the latents that clips were decoded from."""

    def prepare(self, row: Mapping[str, Any], index: int, side: str) -> Prepared:
        """Decode and prepare one side of a row.

        Raises:
            BrokenImage: It cannot be used.
        """
        sizes = target_sizes(self.source, self.multiple)
        target = sizes[0] if len(sizes) == 1 else choose_target(sizes, *self._size(row[self.sides[0]]))
        window = draw_window(self.source, self.seed, index)
        with open_footage(row[side]) as footage:
            if self.rule.most == 1 and self.source.frames is None and footage.moving:
                raise BrokenImage("it is a clip, and this model takes images: data.frames=1 takes the first frames")
            numbers = footage.choose(int(self.lengths.frames[index]), self.lengths.fps)
            prepared = prepare(footage.frames(numbers), len(numbers), target, window)
            file = self.latents.get(side, {}).get(index)
            whole = numbers == list(range(footage.count)) and footage.size == target[::-1] and not window.flip
        return replace(prepared, latent=read_latents(file)) if file is not None and whole else prepared

    @staticmethod
    def _size(cell: Any) -> tuple[int, int]:
        """Height and width of an image."""
        with open_footage(cell) as footage:
            return footage.size[1], footage.size[0]


def choose_target(sizes: Sequence[tuple[int, int]], height: int, width: int) -> tuple[int, int]:
    """Choose the height and width whose aspect is nearest to an image's, as a ratio."""
    return min(sizes, key=lambda size: abs(math.log(size[1] / size[0] * height / width)))


def prepare(frames: Iterable[Image.Image], count: int, target: tuple[int, int], window: Window) -> Prepared:
    """Resize, flip and crop `count` frames to the height and width of `target`, one at a time and all alike."""
    height, width = target
    pixels = np.empty((count, height, width, 3), np.uint8)
    size = None
    for number, frame in enumerate(frames):
        scale = max(height / frame.height, width / frame.width)
        covering = max(width, round(frame.width * scale)), max(height, round(frame.height * scale))
        top, left = round(window.top * (covering[1] - height)), round(window.left * (covering[0] - width))
        pixels[number] = _cut(frame, covering, window.flip, (left, top, left + width, top + height))
        size = torch.tensor([frame.height, frame.width, top, left, height, width])
    assert size is not None, "a clip has a frame"
    return Prepared(pixels, size)


def _cut(frame: Image.Image, covering: tuple[int, int], flip: bool, box: tuple[int, int, int, int]) -> Image.Image:
    from PIL import Image, ImageOps

    resized = frame if covering == frame.size else frame.resize(covering, Image.Resampling.LANCZOS)
    return (ImageOps.mirror(resized) if flip else resized).crop(box)


def _round_to(value: float, multiple: int) -> int:
    return max(1, round(value / multiple)) * multiple
