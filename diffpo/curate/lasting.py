"""How long the clips of a pair last, and their frames segment by segment."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from diffpo.core.segments import segments_of
from diffpo.data.encode import BOTH
from diffpo.data.lengths import describe_broken_image
from diffpo.data.records import Source, Table
from diffpo.disk.ahead import WORKERS, ahead
from diffpo.disk.progress import track
from diffpo.errors import UserError
from diffpo.media.footage import Footage, Timeline
from diffpo.media.frames import FPS, BrokenImage, open_footage

NAMED = 5
"""Rows that a message names."""
_SLACK = 1e-6  # of a segment: times are whole numbers up to rounding


@dataclass(frozen=True)
class Lasting:
    """How long both clips of a pair last."""

    seconds: float
    rate: float
    """Frames per second of clips whose files do not say."""
    allowed: range
    """How many segments they may have: the last frame begins one of its own, or belongs to the one before."""

    @property
    def count(self) -> int:
        """How many segments are labelled."""
        return self.allowed[0]

    def check(self, labels: Sequence[Any], place: str) -> None:
        """Refuse another number of labels."""
        if len(labels) not in self.allowed:
            numbers = " or ".join(map(str, self.allowed))
            raise UserError(
                f"{place} has {len(labels)} labels, but its clips last {self.seconds:.3g} seconds, which makes "
                f"{numbers} segments. Are these the labels of other clips, or of segments of another length?"
            )


def read_lasting(table: Table, source: Source) -> tuple[list[Lasting | None], dict[int, str]]:
    """Measure the clips of a table; nothing is decoded.

    Returns:
        For each row how long its clips last, or None, and why by row.

    Raises:
        UserError: The clips of some pairs have different numbers of segments, and `source.unequal` refuses that.
    """
    rate, seconds = source.fps or FPS, source.segment_seconds

    def measure(row: int) -> list[Lasting] | str:
        found = []
        for side in BOTH:
            cell = table.cell(row, side)
            try:
                with open_footage(cell) as footage:
                    found.append(_measure(footage, rate, seconds))
            except BrokenImage as error:
                return describe_broken_image(side, cell, error)
        return found

    measured: Iterator[list[Lasting] | str] = ahead(measure, range(len(table)), workers=WORKERS, depth=4 * WORKERS)
    lasting: list[Lasting | None] = []
    told, unlike = {}, {}
    for row, found in enumerate(track(measured, "Measuring clips", len(table))):
        lasting.append(None if isinstance(found, str) else min(found, key=lambda one: one.seconds))
        if isinstance(found, str):
            told[row] = found
        elif found[0].count != found[1].count:
            unlike[row] = f"its clips last {found[0].seconds:.3g} and {found[1].seconds:.3g} seconds"
    if unlike and source.unequal == "refuse":
        named = "; ".join(f"row {table.origin[row]}: {why}" for row, why in list(unlike.items())[:NAMED])
        raise UserError(
            f"{len(unlike)} of {len(table)} pairs of {table.path} cannot be compared segment by segment: {named}. Give "
            "--unequal trim to compare as much as both have, or --unequal drop to leave such pairs out."
        )
    if source.unequal == "drop":
        told |= unlike
        lasting = [None if row in unlike else one for row, one in enumerate(lasting)]
    return lasting, dict(sorted(told.items()))


def _measure(footage: Footage, rate: float, seconds: float) -> Lasting:
    timeline = _timeline(footage, rate)
    own = timeline.fps or rate
    return Lasting(len(timeline.starts) / own, rate, segments_of(len(timeline.starts), own, seconds))


def _timeline(footage: Footage, rate: float) -> Timeline:
    """When frames are shown; those of a file that does not say, at a rate."""
    if footage.count == 1 or footage.timeline.end is not None:
        return footage.timeline
    return Timeline(tuple(number / rate for number in range(footage.count)), footage.count / rate)


def segment_frames(cell: Any, lasting: Lasting, fps: float, seconds: float) -> list[tuple[Image, ...]]:
    """Decode a clip at `fps` frames per second, and cut it into segments; a frame that would repeat comes once.

    Raises:
        UserError: It cannot be decoded after all.
    """
    try:
        with open_footage(cell) as footage:
            timeline = _timeline(footage, lasting.rate)
            wanted = timeline.resample(fps) if len(timeline.starts) > 1 else [0]
            numbers: list[dict[int, None]] = [{} for _ in range(lasting.count)]
            for place, number in enumerate(wanted):
                if place / fps < lasting.seconds:  # what only the longer clip has is not compared
                    numbers[min(int(place / (fps * seconds) + _SLACK), lasting.count - 1)][number] = None
            for segment, some in enumerate(numbers):
                if not some:  # a last one that is shorter than the time between two looks
                    some[min(bisect_left(timeline.starts, segment * seconds), len(timeline.starts) - 1)] = None
            flat = sorted({number for some in numbers for number in some})
            frames = dict(zip(flat, footage.frames(flat), strict=True))
    except BrokenImage as error:
        raise UserError(f"{describe_broken_image('one', cell, error)}. Remove its row from the table.") from error
    return [tuple(frames[number] for number in some) for some in numbers]
