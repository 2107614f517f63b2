"""Clips that are no video file: a folder of pictures, one per frame, and an array of numbers.

    FOLDER/frame_1.png, ...      in the order of their names, numbers by their value: 2 before 10
    clip.npy, .safetensors, .pt  one array: uint8, or floats in [0, 1]; `[f h w 3]`, `[f 3 h w]` or `[3 f h w]`

Neither says at which rate it was taken: it has the rate that it is wanted at. Arrays are read without pickles.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from diffpo.media.bounds import MOST_FRAMES, BrokenImage, check_size, open_file
from diffpo.media.footage import Footage, Timeline
from diffpo.media.pictures import Picture

if TYPE_CHECKING:
    from PIL.Image import Image

NPY, ZIP = b"\x93NUMPY", b"PK\x03\x04"
"""The first bytes of numpy's and of torch's files."""
WHITE = 255


class Stack(Footage):
    """Frames that lie one behind the other, and do not say at what rate; nothing stays open."""

    _frames: Sized

    def _count(self) -> int:
        return len(self._frames)

    def _timeline(self) -> Timeline:
        return Timeline(tuple(map(float, range(self.count))))

    def close(self) -> None:
        """There is nothing open."""


class FrameFolder(Stack):
    """A folder of pictures."""

    def __init__(self, folder: Path, suffixes: Sequence[str]):
        """List the pictures of some suffixes."""
        self._frames = files_of(folder, suffixes)
        if not self._frames:
            raise BrokenImage("it is a directory without a picture: a folder stands for a clip if it holds the frames")
        if len(self._frames) > MOST_FRAMES:
            raise BrokenImage(f"too long: {len(self._frames)} frames, at most {MOST_FRAMES} are read")

    def _decode(self, numbers: Sequence[int]) -> Iterator[Image]:
        for number in numbers:
            with open_file(self._frames[number]) as file, Picture(file) as picture:
                frame = next(picture.frames([0]))
            yield frame


def files_of(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """The pictures right in a folder, in the order of the frames; hidden ones are left out."""
    found = (path for path in folder.iterdir() if path.name.lower().endswith(tuple(suffixes)))
    return sorted((path for path in found if not path.name.startswith(".")), key=lambda path: _natural(path.name))


def _natural(name: str) -> list[tuple[int, str]]:
    """Order names by the numbers in them."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


class Numbers(Stack):
    """An array that holds the frames; the file is read whole."""

    def __init__(self, file: BinaryIO, head: bytes):
        """Read the array; `head` are the first bytes of the file."""
        try:
            self._frames = _as_frames(_read(file, head))
        except MemoryError as error:  # what its head says is believed until then
            raise BrokenImage("it says that it is larger than the memory of this machine") from error
        check_size(*self.size)

    def _size(self) -> tuple[int, int]:
        return self._frames.shape[2], self._frames.shape[1]

    def _decode(self, numbers: Sequence[int]) -> Iterator[Image]:
        from PIL import Image

        for number in numbers:
            frame = self._frames[number]
            if frame.dtype != np.uint8:
                if not (frame.min() >= 0 and frame.max() <= 1):
                    raise BrokenImage(
                        f"its numbers lie between {frame.min():g} and {frame.max():g}; floats must lie in [0, 1]"
                    )
                frame = (frame.astype(np.float32) * WHITE).round().astype(np.uint8)
            yield Image.fromarray(np.ascontiguousarray(frame))


def is_numbers(head: bytes) -> bool:
    """Whether a file that begins with these 12 bytes holds an array: of numpy, torch, or safetensors."""
    return head[:6] == NPY or head[:4] == ZIP or (head[5:8] == b"\0\0\0" and head[8:9] == b"{")


def _read(file: BinaryIO, head: bytes) -> np.ndarray:
    """Read the one array of a file."""
    if head[:6] == NPY:
        return np.load(file, allow_pickle=False)
    import torch

    if head[:4] == ZIP:
        found = torch.load(file, map_location="cpu", weights_only=True)
        arrays = [found] if isinstance(found, torch.Tensor) else []
    else:
        from safetensors.torch import load

        arrays = list(load(file.read()).values())
    if len(arrays) != 1:
        raise BrokenImage("it must hold one array, the frames")
    array = arrays[0]
    return (array.float() if array.is_floating_point() else array).numpy()


def _as_frames(array: np.ndarray) -> np.ndarray:
    """Bring an array to `[f h w 3]`, without a copy."""
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise BrokenImage(f"its numbers are {array.dtype}; allowed are uint8, and floats in [0, 1]")
    if array.ndim == 3 and array.shape[2] == 3:
        array = array[None]
    if array.ndim == 4 and 0 not in array.shape:
        for axis in (3, 1, 0):
            if array.shape[axis] == 3:
                return np.moveaxis(array, axis, 3)
    shape = " ".join(map(str, array.shape))
    raise BrokenImage(f"its shape is [{shape}]; allowed are [f h w 3], [f 3 h w] and [3 f h w]")
