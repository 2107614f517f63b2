"""The one decoder of pictures and clips, and the one list of what is read. An image is a clip of one frame.

    decode(source)                       the picture: RGB, the first frame of a clip
    decode_clip(source, frames, fps)     the clip: so many frames, resampled in time where a rate is given
    open_footage(source)                 the same, a frame at a time: memory grows with what is kept
    encode(clip, suffix)                 the bytes of a PNG (animated, where there are more frames than one) or an mp4

Training, scoring and grids see the same pixels. What a file is, its first bytes say, not its name: pictures and
animations are read by `pictures`, video files by `videos`, folders of frames and arrays by `stacks`; what is read is
bounded by `bounds`, since others made it.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from diffpo.disk.tables import files_below
from diffpo.media.bounds import BrokenImage, breaking, check_kept, open_file, read_bytes
from diffpo.media.footage import Footage
from diffpo.media.pictures import Picture
from diffpo.media.stacks import FrameFolder, Numbers, files_of, is_numbers
from diffpo.media.videos import Video, container_of, write_mp4

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["BrokenImage", "Clip", "decode", "decode_clip", "encode", "look", "open_footage", "read_bytes"]

log = logging.getLogger(__name__)

PICTURES = (".png", ".apng", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
"""Endings of the names of pictures, in every command."""
CLIPS = (".mp4", ".m4v", ".mov", ".mkv", ".webm")
"""Endings of the names of video files."""
ARRAYS = (".npy", ".pt", ".safetensors")
"""Endings of arrays, which tables and tars may name; in a folder they are something else more often."""
SUFFIXES = PICTURES + CLIPS
"""Endings of all that is looked for in a folder."""
OTHERS = (
    *(".heic", ".heif", ".jxl", ".jp2", ".svg", ".eps", ".psd", ".ico", ".tga", ".ppm", ".dng", ".cr2", ".nef", ".hdr"),
    *(".exr", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".ts"),
)
"""Endings of pictures and clips that are not read: they are named where they are left out."""
FPS = 8.0
"""Frames per second of clips that do not say."""
_HEAD = 12  # bytes that say what a file is


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

    @property
    def nbytes(self) -> int:
        """Bytes that its pixels take."""
        return 3 * len(self.frames) * self.first.width * self.first.height

    def some(self, count: int) -> tuple[Image, ...]:
        """At most `count` frames, spread evenly from the first to the last."""
        last = len(self.frames) - 1
        count = min(count, len(self.frames))
        return tuple(self.frames[round(i * last / max(1, count - 1))] for i in range(count))


def decode(source: Any) -> Image:
    """Decode a picture to RGB, as it is meant to be looked at; of a clip the first frame. See `decode_clip`."""
    return decode_clip(source, 1).first


def decode_clip(source: Any, frames: int | None = None, fps: float | None = None) -> Clip:
    """Decode a clip.

    Args:
        source: Bytes, a path, or `{"bytes": ..., "path": ...}`, as `datasets.Image(decode=False)` gives it. A path may
            be a folder that holds the frames.
        frames: How many frames from the first on; None: all that the file has.
        fps: Frames per second to resample to; None: the frames as the file has them.

    Raises:
        BrokenImage: It cannot be decoded, it is no regular file, it is too large or extremely long, or it has fewer
            frames, or so many that they are too large together.
    """
    with open_footage(source) as footage:
        return _decode(footage, frames, fps)


def _decode(footage: Footage, frames: int | None, fps: float | None) -> Clip:
    if frames == 1:
        return Clip(tuple(footage.frames([0])))
    numbers = footage.choose(frames, fps)
    check_kept(len(numbers), *footage.size)
    pictures = tuple(footage.frames(numbers))
    return Clip(pictures, fps or footage.timeline.fps if len(pictures) > 1 else None)


def decode_whole(source: Any) -> Clip:
    """Decode all frames of a clip; of an animation, which may stand for a picture, the first. See `decode_clip`."""
    with open_footage(source) as footage:
        return _decode(footage, None if footage.moving else 1, None)


@dataclass(frozen=True)
class Look:
    """What a whole picture or clip is."""

    width: int
    height: int
    frames: int
    fps: float | None
    """Frames per second; None: it does not say, or is a picture."""


def look(source: Any) -> Look:
    """Decode all frames of a clip, or a picture, and keep none; args and errors are those of `decode_clip`."""
    with open_footage(source) as footage:
        for frame in footage.frames(range(footage.count if footage.moving else 1)):
            size = frame.size
        return Look(*size, footage.count, footage.timeline.fps)


@contextmanager
def open_footage(source: Any) -> Iterator[Footage]:
    """Open a picture or a clip; nothing is decoded yet. Args and errors are those of `decode_clip`."""
    if isinstance(source, dict):
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    if source is None:
        raise BrokenImage("the cell is empty")
    with breaking():
        if isinstance(source, str | Path) and os.path.isdir(source):
            file, footage = io.BytesIO(), FrameFolder(Path(source), PICTURES)
        else:
            file = open_file(source) if isinstance(source, str | Path) else io.BytesIO(source)
            footage = _open(file)
    with closing(file), footage:
        yield footage


def _open(file: BinaryIO) -> Footage:
    """Open a file as what its first bytes say."""
    try:
        head = file.read(_HEAD)
        file.seek(0)
        if container := container_of(head):
            return Video(file, container)
        return Numbers(file, head) if is_numbers(head) else Picture(file)
    except BaseException:
        file.close()
        raise


def encode(clip: Clip, suffix: str = ".png") -> bytes:
    """Encode a clip.

    Args:
        clip: The frames.
        suffix: `.png`: without loss; browsers play the frames if there are several. `.mp4`: see `videos.write_mp4`.
    """
    if suffix == ".mp4":
        return write_mp4(clip.frames, clip.fps or FPS)
    assert suffix == ".png", suffix
    file, how = io.BytesIO(), {}
    if len(clip.frames) > 1:
        how = {"save_all": True, "append_images": clip.frames[1:], "duration": 1000 / (clip.fps or FPS)}
        # Opaque frames look the same in both ways of blending; the change keeps Pillow from merging equal frames.
        how["blend"] = [i % 2 for i in range(len(clip.frames))]
    clip.first.save(file, format="PNG", **how)
    return file.getvalue()


def parts_of(path: str | Path) -> list[Path]:
    """The files that hold a picture or a clip: itself, or the frames in a folder."""
    return files_of(Path(path), PICTURES) if os.path.isdir(path) else [Path(path)]


def name_of(source: Any) -> str:
    """Name an image's source in a message."""
    path = source.get("path") if isinstance(source, dict) else source
    return str(path) if isinstance(path, str | Path) else "(embedded)"


def find_pictures(folder: Path) -> list[Path]:
    """All pictures and clips below a folder that are not hidden, in the order of their names."""
    return files_below(folder, SUFFIXES)


def name_others(folder: Path) -> None:
    """Count and name the pictures and clips below a folder whose formats are not read."""
    others = [str(file.relative_to(folder)) for file in files_below(folder, OTHERS)]
    if others:
        some = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        log.warning(f"{folder}: the formats of {len(others)} files are not read, they are left out: {some}")
