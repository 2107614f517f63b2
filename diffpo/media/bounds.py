"""How much is read of media that others made: files, pixels and frames have limits, and a pipe is no file.

What passes a limit, or cannot be decoded, is a `BrokenImage`: its row is dropped and named, and nothing else stops.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

from diffpo.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
"""What Pillow may try, whatever a file is called. Others call programs outside (EPS) or are rarely tested."""
LARGEST_FILE = 256 * 2**20
"""Bytes."""
LARGEST_PICTURE = 50_000_000
"""Pixels: the largest sensors of telephones."""
LARGEST_CLIP = 128 * 2**20
"""Pixels of all frames that are kept of a clip, together."""
LARGEST_DECODED = 40_000_000_000
"""Pixels of all frames that are decoded to get at those that are kept: ten minutes of 1920x1080 at 30 per second."""
MOST_FRAMES = 100_000
"""Frames of a file, and of a clip."""
MOST_EXTREME = 16
"""Images longer than so many times their width (or the reverse) are broken: resizing them would take gigabytes."""
_LARGE = 4_000_000  # pixels beyond which pictures are decoded one at a time
_one_at_a_time = threading.Lock()


class BrokenImage(UserError):
    """An image or a clip that cannot be used; the message is the reason."""


@contextmanager
def breaking() -> Iterator[None]:
    """Say of whatever a decoder raises that the image is broken."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except (MemoryError, UserError):
        raise
    except UnidentifiedImageError as error:
        raise BrokenImage(f"not an image in a format that is read ({', '.join(FORMATS)})") from error
    except EOFError as error:
        raise BrokenImage("it is cut off: it ends too early") from error
    except OSError as error:
        raise BrokenImage(error.strerror or str(error)) from error
    except Image.DecompressionBombError as error:
        raise BrokenImage(f"too large: more than {LARGEST_PICTURE // 10**6} million pixels") from error
    except Exception as error:  # decoders raise nearly anything on damaged files, in words of their own
        kind = type(error).__name__
        raise BrokenImage(f"it cannot be decoded: it is damaged, or not what its first bytes say ({kind})") from error


def open_file(path: str | Path) -> BinaryIO:
    """Open a regular file; a pipe without a writer must not make the program wait.

    Raises:
        BrokenImage: It is no regular file, or too large.
        OSError: It is not there, or cannot be read.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    found = os.fstat(file.fileno())
    if stat.S_ISREG(found.st_mode) and found.st_size <= LARGEST_FILE:
        return file
    file.close()
    if stat.S_ISREG(found.st_mode):
        raise BrokenImage(f"too large: {found.st_size / 2**20:.0f} MB, at most {LARGEST_FILE // 2**20} are read")
    raise BrokenImage("not a regular file")


def read_bytes(path: str | Path) -> bytes:
    """Read a file that others may have made; `BrokenImage`: it is no regular file (a pipe, a device), or too large."""
    with open_file(path) as file:
        return file.read()


def check_size(width: int, height: int) -> int:
    """The pixels of a picture, if it is one to decode."""
    if width * height > LARGEST_PICTURE:
        raise BrokenImage(f"too large: {width}x{height}, at most {LARGEST_PICTURE // 10**6} million pixels are read")
    if max(width, height) > MOST_EXTREME * min(width, height):
        raise BrokenImage(f"{width}x{height} pixels is longer than {MOST_EXTREME}:1")
    return width * height


def check_kept(frames: int, width: int, height: int) -> None:
    """Refuse a clip whose frames would be too much to keep."""
    most = LARGEST_CLIP // (width * height)
    if frames > most:
        raise BrokenImage(f"too large: more than {most} frames of {width}x{height}")


def in_turn(pixels: int) -> AbstractContextManager[object]:
    """What a picture of so many pixels is decoded in: large ones take turns, whatever the number of threads."""
    return _one_at_a_time if pixels > _LARGE else nullcontext()
