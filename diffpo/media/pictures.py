"""Pictures and animations that Pillow decodes, brought to RGB as they are meant to be looked at.

The EXIF orientation is applied, transparency is laid on white, 16-bit grey loses its low byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from diffpo.media.bounds import FORMATS, MOST_FRAMES, BrokenImage, check_size, in_turn
from diffpo.media.footage import Footage, Timeline

if TYPE_CHECKING:
    from PIL.Image import Image

TRANSPARENT = ("RGBA", "RGBa", "LA", "La", "PA")
"""Pillow's modes with an alpha channel."""
_BAND = 1024  # rows of a transparent picture that are laid on white at a time
_ORIENTATION, _SIDEWAYS = 0x0112, 5  # the EXIF tag, and its first value that exchanges width and height


class Picture(Footage):
    """A picture, or an animation."""

    moving = False  # an animation may stand for a picture: its first frame

    def __init__(self, file: BinaryIO):
        """Read the file's head."""
        from PIL import Image

        self._image = Image.open(file, formats=FORMATS)
        check_size(*self._image.size)
        self._durations: dict[int, float] = {}

    def _size(self) -> tuple[int, int]:
        width, height = self._image.size
        sideways = self._image.getexif().get(_ORIENTATION, 1) >= _SIDEWAYS
        return (height, width) if sideways else (width, height)

    def _count(self) -> int:
        if self._image.format == "MPO":  # a photograph of a telephone, with others of other sizes behind it
            return 1
        count = getattr(self._image, "n_frames", 1)  # formats of single pictures do not say
        if count > MOST_FRAMES:
            raise BrokenImage(f"too long: {count} frames, at most {MOST_FRAMES} are read")
        return count

    def _timeline(self) -> Timeline:
        if self.count == 1:
            return Timeline((0.0,))
        for number in range(self.count):
            if number not in self._durations:
                self._seek(number)
        seconds = [self._durations[number] for number in range(self.count)]
        starts = tuple(accumulate(seconds[:-1], initial=0.0))
        return Timeline(starts, starts[-1] + seconds[-1] if all(seconds) else None)

    def close(self) -> None:
        self._image.close()

    def _decode(self, numbers: Sequence[int]) -> Iterator[Image]:
        for number in numbers:
            with in_turn(check_size(*self._image.size)):
                self._seek(number)
                frame = to_rgb(self._image)
            yield frame

    def _seek(self, number: int) -> None:
        """Go to a frame, and remember how long it is shown."""
        if number != self._image.tell():
            self._image.seek(number)
            check_size(*self._image.size)  # pages of a TIFF have sizes of their own
        if self.count > 1:
            self._image.load()  # before, some formats do not know
        self._durations[number] = (self._image.info.get("duration") or 0) / 1000


def to_rgb(opened: Image) -> Image:
    """Bring an opened picture to RGB."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(grey).convert("RGB")
    elif image.mode in TRANSPARENT or "transparency" in image.info:
        image = _on_white(image)
    else:
        image = image.convert("RGB")
    image.info = {}  # a transparent colour, a profile or a comment must not change what others make of the pixels
    return image


def _on_white(image: Image) -> Image:
    """Lay a transparent picture on white, band by band: large ones take little more memory than their pixels."""
    from PIL import Image

    result = Image.new("RGB", image.size)
    for top in range(0, image.height, _BAND):
        band = image.crop((0, top, image.width, min(top + _BAND, image.height))).convert("RGBA")
        white = Image.new("RGBA", band.size, "white")
        result.paste(Image.alpha_composite(white, band).convert("RGB"), (0, top))
    return result
