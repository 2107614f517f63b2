"""What every picture and clip is once it is opened, whatever its format: a size, and frames that are shown at times.

`frames.open_footage` opens one; `choose` numbers the frames that make a clip, and `frames` decodes them one at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar, Self

from diffpo.media.bounds import MOST_FRAMES, BrokenImage, breaking

if TYPE_CHECKING:
    from PIL.Image import Image

NEARLY = 1e-3
"""Seconds: some containers round times to a thousandth, and what is nearer by less is not nearer."""


@dataclass(frozen=True)
class Timeline:
    """When the frames of a file are shown."""

    starts: tuple[float, ...]
    """Seconds from the first frame on, ascending."""
    end: float | None = None
    """When the last frame ends; None: the file does not say when its frames are shown."""

    @property
    def fps(self) -> float | None:
        """Frames per second, in the mean."""
        return round(len(self.starts) / self.end, 6) if self.end and len(self.starts) > 1 else None

    def resample(self, fps: float) -> list[int]:
        """Number the frames that a clip of an even rate shows: each is the nearest one in time; the earlier of two.

        A file that does not say when its frames are shown is taken to have that rate.
        """
        if self.end is None:
            return list(range(len(self.starts)))
        count = max(1, round(self.end * fps))
        if count > MOST_FRAMES:
            raise BrokenImage(f"too long: {self.end:.0f} s at {fps:g} frames per second, at most {MOST_FRAMES} frames")
        return [self._nearest(i / fps) for i in range(count)]

    def _nearest(self, time: float) -> int:
        after = bisect_left(self.starts, time)
        if after == len(self.starts):
            return after - 1
        return after - 1 if after and time - self.starts[after - 1] <= self.starts[after] - time + NEARLY else after


@dataclass(frozen=True)
class FrameRule:
    """What clips a model takes."""

    step: int = 1
    """Lengths are k * step + first frames, k from 0 on."""
    most: int | None = 1
    """The longest one; None: any. 1: the model takes images."""
    fps: float | None = None
    """Frames per second that the model was made for; None: it takes images."""
    first: int = 1
    """The shortest one."""

    def below(self, count: int) -> int:
        """The longest clip that the model takes, of `count` frames at most; 0: there is none."""
        count = count if self.most is None else min(count, self.most)
        return 0 if count < self.first else count - (count - self.first) % self.step

    def __str__(self) -> str:
        """Say it in words."""
        longest = "" if self.most is None else f", {self.most} at most"
        return f"k * {self.step} + {self.first} frames{longest}"


class Footage(ABC):
    """An opened picture or clip. Frames are decoded when they are asked for, one at a time."""

    moving: ClassVar[bool] = True
    """Whether its format is one of clips."""

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as it is meant to be looked at; `BrokenImage` as for the other two."""
        with breaking():
            return self._size()

    @cached_property
    def count(self) -> int:
        """How many frames it has."""
        with breaking():
            return self._count()

    @cached_property
    def timeline(self) -> Timeline:
        """When they are shown."""
        with breaking():
            return self._timeline()

    def _size(self) -> tuple[int, int]:
        return next(self.frames([0])).size

    @abstractmethod
    def _count(self) -> int:
        """See `count`; whatever it raises says that the file is broken, as for the others."""

    @abstractmethod
    def _timeline(self) -> Timeline:
        """See `timeline`."""

    @abstractmethod
    def close(self) -> None:
        """Let the file go."""

    @abstractmethod
    def _decode(self, numbers: Sequence[int]) -> Iterator[Image]:
        """Yield frames by their numbers, ascending, each once."""

    def __enter__(self) -> Self:
        """Be open."""
        return self

    def __exit__(self, *error: object) -> None:
        """Let the file go."""
        self.close()

    def choose(self, frames: int | None = None, fps: float | None = None) -> list[int]:
        """Number the frames that make a clip.

        Args:
            frames: So many from the first on; None: all.
            fps: Resampled to that rate; None: as they are in the file.

        Raises:
            BrokenImage: There are fewer, or the file is damaged.
        """
        if frames == 1:
            return [0]
        numbers = list(range(self.count)) if fps is None else self.timeline.resample(fps)
        if frames is not None and len(numbers) < frames:
            rate = "" if fps is None else f" at {fps:g} per second"
            raise BrokenImage(f"it has {len(numbers)} frames{rate} where {frames} are wanted")
        return numbers[:frames]

    def frames(self, numbers: Sequence[int]) -> Iterator[Image]:
        """Decode frames: RGB, all of one size.

        Args:
            numbers: Which ones, ascending; one may repeat.

        Raises:
            BrokenImage: One cannot be decoded, or is of another size.
        """
        repeats = [len(list(same)) for _, same in groupby(numbers)]
        decoded = self._decode(sorted(set(numbers)))
        size = None
        for repeat in repeats:
            with breaking():
                frame = next(decoded, None)
            if frame is None:
                raise BrokenImage("it ends before its last frame")
            size = size or frame.size
            if frame.size != size:
                raise BrokenImage("its frames have different sizes")
            for _ in range(repeat):
                yield frame
