"""How many frames the clips of each pair have, known before anything is decoded or encoded.

A model says what it takes (`FrameRule`), the settings what is asked for (`data.frames`, `data.fps`, `data.unequal`).
What a file has at some rate is counted once and kept under the hash of its bytes, like its encoding.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffpo.data.contents import Contents
from diffpo.disk.ahead import WORKERS, ahead
from diffpo.disk.rows import Row, RowStore
from diffpo.errors import UserError
from diffpo.media.footage import FrameRule
from diffpo.media.frames import BrokenImage, name_of, open_footage

if TYPE_CHECKING:
    from diffpo.data.records import Source, Table

log = logging.getLogger(__name__)

FORMAT = 1
"""Raise it when the meaning of kept lengths changes."""
NAMED = 8
"""Rows and lengths that a message names."""


@dataclass(frozen=True)
class Lengths:
    """The lengths of a table's clips, as the model gets them."""

    frames: np.ndarray
    """`[n]` frames of both clips of a row; 0 where the row is dropped."""
    fps: float | None = None
    """Frames per second; None: there are images alone."""
    dropped: dict[int, str] = field(default_factory=dict)
    """Rows whose clips cannot be used, and why."""
    own: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By side, `[n]` frames that a clip would have if its row's other clip were not there; empty for images."""

    def shortened(self, side: str) -> np.ndarray:
        """Rows in which a side's clip is cut to the length of the other one."""
        return np.flatnonzero(self.own[side] != self.frames) if side in self.own else np.zeros(0, np.int64)


def check_frames(source: Source, rule: FrameRule) -> None:
    """Check that a model takes clips as long as `data.frames`.

    Raises:
        UserError: It does not.
    """
    asked = source.frames
    if asked is None or asked == rule.most == 1:
        return
    if rule.most == 1:
        raise UserError(f"data.frames={asked}, but this model takes images: leave it out, or use a model of clips.")
    below = rule.below(asked)
    if below != asked:
        near = [below, below + rule.step] if below else [rule.first]
        nearest = " or ".join(str(count) for count in near if count and rule.below(count) == count)
        raise UserError(f"data.frames={asked} does not fit this model: it takes {rule}. Use {nearest}.")


def read_lengths(
    table: Table,
    source: Source,
    rule: FrameRule,
    contents: Mapping[str, Contents],
    home: Path | None = None,
    *,
    shown: bool = True,
) -> Lengths:
    """Count the frames of a table's clips, or remember what was counted.

    Args:
        table: The pairs.
        source: What is asked for.
        rule: What the model takes.
        contents: Hashes of the sides that are used.
        home: The folder of all caches; `cache_home()` by default.
        shown: Whether to show progress, and to say in the log what is cut.

    Raises:
        UserError: The model takes no clips of `data.frames`, or the clips of some pairs differ in length.
    """
    check_frames(source, rule)
    if rule.most == 1:
        return Lengths(np.broadcast_to(np.int64(1), (len(table),)))
    fps, dropped = source.fps or rule.fps, {}
    own = {side: np.zeros(len(table), np.int64) for side in contents}
    for side, found in contents.items():
        counted = _count(table, side, found, fps, home, shown)
        for row, frames in counted.items():
            taken = _take(frames, source, rule, fps)
            if isinstance(taken, str):
                dropped.setdefault(row, describe_broken_image(side, table.cell(row, side), taken))
            else:
                own[side][row] = taken
        if shown and source.frames is None:
            _tell_cut([n for n in counted.values() if isinstance(n, int)], rule, f"{table.path}, {side}")
    together = np.stack([*own.values()])
    frames, unlike = together.min(axis=0), np.flatnonzero(together.min(axis=0) != together.max(axis=0))
    unlike = [row for row in unlike.tolist() if row not in dropped and frames[row]]
    if unlike and source.unequal != "trim":
        told = {row: f"its clips differ in length: {_sides(own, row)} at {fps:g} per second" for row in unlike}
        if source.unequal == "refuse":
            raise _unequal(table, told)
        dropped |= told
    frames[list(dropped)] = 0
    return Lengths(frames, fps, dict(sorted(dropped.items())), own)


def describe_broken_image(side: str, cell: object, reason: object) -> str:
    """Say which image of a row cannot be used, and why."""
    return f"{side} image {name_of(cell)}: {reason}"


def _count(
    table: Table, side: str, contents: Contents, fps: float | None, home: Path | None, shown: bool
) -> dict[int, int | str]:
    """Frames at a rate, or what is wrong, by row."""
    store = RowStore("lengths", {"format": FORMAT, "fps": fps}, home)
    usable = np.flatnonzero(contents.keys != b"")

    def count(places: Sequence[int]) -> Iterator[Row]:
        cells = (table.cell(int(usable[place]), side) for place in places)
        return map(Row, ahead(partial(_measure, fps=fps), cells, workers=WORKERS, depth=4 * WORKERS))

    store.fill(contents.keys[usable], count, "Measuring clips")
    codes, kinds = store.values(contents.keys[usable])
    found = [kind.get("frames", kind.get("broken")) for kind in kinds]
    return dict(contents.unreadable) | {int(row): found[code] for row, code in zip(usable, codes, strict=True)}


def _measure(cell: object, fps: float | None) -> dict[str, int | str]:
    """Count the frames of one clip, resampled to a rate."""
    try:
        with open_footage(cell) as footage:
            return {"frames": len(footage.choose(fps=fps))}
    except BrokenImage as error:
        return {"broken": str(error)}


def _take(counted: int | str, source: Source, rule: FrameRule, fps: float | None) -> int | str:
    """How many frames to take of a clip, or why it cannot be used."""
    if isinstance(counted, str):
        return counted
    taken, wanted = rule.below(counted), f"the model takes {rule}"
    if source.frames is not None:
        taken, wanted = source.frames * (source.frames <= counted), f"data.frames={source.frames} are wanted"
    return taken or f"it has {counted} frames at {fps:g} per second where {wanted}"


def _tell_cut(counts: Sequence[int], rule: FrameRule, what: str) -> None:
    """Say which lengths the model does not take, and what is taken of them."""
    cut = Counter((count, rule.below(count)) for count in counts if rule.below(count) not in (0, count))
    if cut:
        named = ", ".join(f"{count} to {below} ({clips})" for (count, below), clips in cut.most_common(NAMED))
        more = f", and {len(cut) - NAMED} other lengths" if len(cut) > NAMED else ""
        log.warning(
            f"{what}: {cut.total()} of {len(counts)} clips have lengths that the model does not take ({rule}); "
            f"their last frames are left out. Frames (clips): {named}{more}."
        )


def _sides(own: Mapping[str, np.ndarray], row: int) -> str:
    return ", ".join(f"{side} has {frames[row]} frames" for side, frames in own.items())


def _unequal(table: Table, told: Mapping[int, str]) -> UserError:
    named = "; ".join(f"row {table.origin[row]}: {what}" for row, what in list(told.items())[:NAMED])
    more = f"; and {len(told) - NAMED} more" if len(told) > NAMED else ""
    return UserError(
        f"{len(told)} of {len(table)} pairs of {table.path} cannot be compared frame by frame: {named}{more}. Set "
        "data.unequal=trim to cut the longer clip at its end, data.unequal=drop to leave such pairs out, or "
        "data.frames=N to take as many frames of all."
    )
