"""The one decoder of pictures and clips, and the one list of what is read. An image is a clip of one frame.

    decode(source)               the picture: RGB, the first frame of an animation
    decode_clip(source, frames)  the clip: so many frames of an animation (GIF, WebP, AVIF, PNG)
    encode(clip)                 the bytes of a PNG, an animated one where there are more frames than one

Training, scoring and grids see the same pixels: the EXIF orientation is applied, transparency is laid on white, 16-bit
grey loses its low byte. What is read is bounded, since it comes from others: files, pixels and frames have limits,
large pictures are decoded one at a time whatever the number of threads, and only the formats of `FORMATS` are tried.
"""

from __future__ import annotations

import io
import logging
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from diffpo.disk.tables import files_below
from diffpo.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".apng", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
"""Endings of the names of pictures, in every command."""
OTHERS = (
    *(".heic", ".heif", ".jxl", ".jp2", ".svg", ".eps", ".psd", ".ico", ".tga", ".ppm", ".dng", ".cr2", ".nef", ".hdr"),
    *(".exr", ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"),
)
"""Endings of pictures and clips that are not read: they are named where they are left out."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
"""What Pillow may try, whatever a file is called. Others call programs outside (EPS) or are rarely tested."""

LARGEST_FILE = 256 * 2**20
"""Bytes."""
LARGEST_PICTURE = 50_000_000
"""Pixels: the largest sensors of telephones."""
LARGEST_CLIP = 128 * 2**20
"""Pixels of all frames together."""
MOST_EXTREME = 16
"""Images longer than so many times their width (or the reverse) are broken: resizing them would take gigabytes."""
_LARGE = 4_000_000  # pixels beyond which pictures are decoded one at a time
_one_at_a_time = threading.Lock()
_BAND = 1024  # rows of a transparent picture that are laid on white at a time

TRANSPARENT = ("RGBA", "RGBa", "LA", "La", "PA")
"""Pillow's modes with an alpha channel."""


class BrokenImage(UserError):
    """An image that cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Clip:
    """Frames of one size, RGB; an image is a clip of one frame."""

    frames: tuple[Image, ...]
    fps: float | None = None
    """Frames per second, None where the file does not say."""

    def __post_init__(self):
        """Check that there is a frame, and that all have one size."""
        assert self.frames
        assert len({frame.size for frame in self.frames}) == 1

    @property
    def first(self) -> Image:
        """The first frame: the picture, where a picture is wanted."""
        return self.frames[0]

    def some(self, count: int) -> tuple[Image, ...]:
        """At most `count` frames, spread evenly from the first to the last."""
        last = len(self.frames) - 1
        count = min(count, len(self.frames))
        return tuple(self.frames[round(i * last / max(1, count - 1))] for i in range(count))


def decode(source: Any) -> Image:
    """Decode a picture to RGB, as it is meant to be looked at; of an animation the first frame. See `decode_clip`."""
    return decode_clip(source, 1).first


def decode_clip(source: Any, frames: int | None = None) -> Clip:
    """Decode a clip.

    Args:
        source: Bytes, a path, or `{"bytes": ..., "path": ...}`, as `datasets.Image(decode=False)` gives it.
        frames: How many frames from the first on; None: all that the file has.

    Raises:
        BrokenImage: It cannot be decoded, it is no regular file, it is too large or extremely long, or it has fewer
            frames, or so many that they are too large together.
    """
    from PIL import Image, ImageSequence, UnidentifiedImageError

    try:
        with _opened(source) as file, Image.open(file, formats=FORMATS) as image:
            pixels = _check_size(image.width, image.height)
            with _one_at_a_time if pixels > _LARGE else nullcontext():
                if frames == 1:
                    return Clip((_to_rgb(image),))
                return _read_frames(ImageSequence.Iterator(image), frames, LARGEST_CLIP // pixels)
    except (MemoryError, BrokenImage):
        raise
    except UnidentifiedImageError as error:
        raise BrokenImage(f"not an image in a format that is read ({', '.join(FORMATS)})") from error
    except OSError as error:
        raise BrokenImage(error.strerror or str(error)) from error
    except Image.DecompressionBombError as error:
        raise BrokenImage(f"too large: more than {LARGEST_PICTURE // 10**6} million pixels") from error
    except Exception as error:  # decoders raise nearly anything on damaged files (SyntaxError, struct.error, ...)
        raise BrokenImage(f"{type(error).__name__}: {error}") from error


def encode(clip: Clip) -> bytes:
    """Encode a clip without loss: a PNG, whose frames browsers play if there are several."""
    file, how = io.BytesIO(), {}
    if len(clip.frames) > 1:
        how = {"save_all": True, "append_images": clip.frames[1:], "duration": 1000 / (clip.fps or 8)}
        # Opaque frames look the same in both ways of blending; the change keeps Pillow from merging equal frames.
        how["blend"] = [i % 2 for i in range(len(clip.frames))]
    clip.first.save(file, format="PNG", **how)
    return file.getvalue()


def read_bytes(path: str | Path) -> bytes:
    """Read a file that others may have made; `BrokenImage`: it is no regular file (a pipe, a device), or too large."""
    with _open_file(path) as file:
        return file.read()


def name_of(source: Any) -> str:
    """Name an image's source in a message."""
    path = source.get("path") if isinstance(source, dict) else source
    return str(path) if isinstance(path, str | Path) else "(embedded)"


def _opened(source: Any) -> BinaryIO:
    if isinstance(source, dict):
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    if source is None:
        raise BrokenImage("the cell is empty")
    return _open_file(source) if isinstance(source, str | Path) else io.BytesIO(source)


def _open_file(path: str | Path) -> BinaryIO:
    """Open a regular file; a pipe without a writer must not make the program wait."""
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    found = os.fstat(file.fileno())
    if stat.S_ISREG(found.st_mode) and found.st_size <= LARGEST_FILE:
        return file
    file.close()
    if stat.S_ISREG(found.st_mode):
        raise BrokenImage(f"too large: {found.st_size / 2**20:.0f} MB, at most {LARGEST_FILE // 2**20} are read")
    raise BrokenImage("not a regular file")


def _check_size(width: int, height: int) -> int:
    """The pixels of a picture, if it is one to decode."""
    if width * height > LARGEST_PICTURE:
        raise BrokenImage(f"too large: {width}x{height}, at most {LARGEST_PICTURE // 10**6} million pixels are read")
    if max(width, height) > MOST_EXTREME * min(width, height):
        raise BrokenImage(f"{width}x{height} pixels is longer than {MOST_EXTREME}:1")
    return width * height


def _read_frames(images: Iterator[Image], wanted: int | None, most: int) -> Clip:
    frames, durations = [], []
    for image in images:
        if len(frames) == wanted:
            break
        _check_size(image.width, image.height)  # pages of a TIFF have sizes of their own
        if len(frames) == most:
            raise BrokenImage(f"too large: more than {most} frames of {image.width}x{image.height}")
        frames.append(_to_rgb(image))
        if frames[-1].size != frames[0].size:
            raise BrokenImage("its frames have different sizes")
        durations.append(image.info.get("duration") or 0)
    if wanted is not None and len(frames) < wanted:
        raise BrokenImage(f"it has {len(frames)} frames where {wanted} are wanted")
    known = len(frames) > 1 and all(durations)
    return Clip(tuple(frames), 1000 * len(frames) / sum(durations) if known else None)


def _to_rgb(opened: Image) -> Image:
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


def find_pictures(folder: Path) -> list[Path]:
    """All pictures below a folder that are not hidden, in the order of their names."""
    return files_below(folder, SUFFIXES)


def name_others(folder: Path) -> None:
    """Count and name the pictures and clips below a folder whose formats are not read."""
    others = [str(file.relative_to(folder)) for file in files_below(folder, OTHERS)]
    if others:
        some = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        log.warning(f"{folder}: the formats of {len(others)} files are not read, they are left out: {some}")
