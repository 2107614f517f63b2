"""A table's labels of segments as labels of latent frames, for methods that read them (`method.dense`)."""

import logging
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from diffpo.core.segments import latent_labels, segments_of
from diffpo.data.records import Source, Table
from diffpo.errors import UserError
from diffpo.media.footage import FrameRule

log = logging.getLogger(__name__)
NAMED = 8
"""Rows that a message names."""


class SegmentLabels:
    """The column `segments` of a table, mapped to latent frames when a batch asks for it."""

    def __init__(
        self,
        table: Table,
        frames: np.ndarray,
        source: Source,
        rule: FrameRule,
        held: Callable[[int], Sequence[range]],
        fps: float | None,
    ):
        """Check that every usable row has as many labels as its clip has segments.

        Args:
            table: The pairs; it has the column `segments`.
            frames: `[n]` frames of each row's clips; 0 where the row is dropped.
            source: How long a segment is, the rule for latent frames of two segments, and what cuts clips.
            rule: The clips that the model takes: longer ones were cut.
            held: Says which pixel frames each latent frame of a clip of so many frames holds.
            fps: Frames per second of the clips, as the model gets them; None: there are images only.

        Raises:
            UserError: Some rows have another number of labels.
        """
        self._table, self._frames, self._source = table, frames, source
        self._rule, self._held, self._fps = rule, held, fps
        self._check()
        if source.ties == "drop" and table.counts.ties:
            log.warning(
                f"{table.path}: {table.counts.ties} pairs that are ties as a whole were left out, whatever their "
                "segments say: data.ties=keep learns from those, too."
            )

    def _check(self) -> None:
        from pyarrow import compute

        usable = np.flatnonzero(self._frames)
        counts = compute.list_value_length(self._table.arrow("segments")).to_numpy()[usable]
        wrong, told = np.zeros(len(usable), bool), {}
        for frames in np.unique(self._frames[usable]).tolist():
            fewest, most = self._allowed(frames)
            wrong |= (self._frames[usable] == frames) & ((counts < fewest) | (counts > most))
            told[frames] = f"{_length(frames, self._fps)}, which is {_numbers(fewest, most)}"
        if not wrong.any():
            return
        named = [
            f"row {self._table.origin[row]} has {count} for {told[self._frames[row]]}"
            for row, count in zip(usable[wrong][:NAMED].tolist(), counts[wrong].tolist(), strict=False)
        ]
        more = f"; and {wrong.sum() - NAMED} more" if wrong.sum() > NAMED else ""
        raise UserError(
            f"{self._table.path}: `segments` has one label for each {self._source.segment_seconds:g} seconds "
            f"(data.segment_seconds) of a clip; {wrong.sum()} rows have another number: {'; '.join(named)}{more}. Are "
            "the labels those of other clips? Mend or remove these rows, or set data.segment_seconds."
        )

    def _allowed(self, frames: int) -> tuple[int, float]:
        """The fewest and the most labels of clips of so many frames; clips that were cut may have any number more.

        Frames at a clip's end that make no length that the model takes were left out, and may have had a label.
        """
        rate, seconds = self._rate(frames), self._source.segment_seconds
        fewest = segments_of(frames, rate, seconds)[0]
        longest = self._rule.most is not None and frames == self._rule.most > 1
        if self._source.frames is not None or self._source.unequal == "trim" or longest:
            return fewest, math.inf
        left_out = 0 if frames == 1 else self._rule.step - 1
        return fewest, segments_of(frames + left_out, rate, seconds)[-1]

    def _rate(self, frames: int) -> float:
        assert frames == 1 or self._fps is not None, "clips have a rate, at which they were decoded"
        return self._fps or 1.0

    def rows(self, index: Sequence[int]) -> Tensor:
        """Label the latent frames of rows whose clips are equally long, `[b f]` in {-1, 0, 1}."""
        labels = self._table.arrow("segments", index).to_pylist()
        (frames,) = set(self._frames[list(index)].tolist())
        held, seconds = self._held(frames), self._source.segment_seconds
        rate, rule = self._rate(frames), self._source.segment_rule
        return torch.tensor([latent_labels(marks, held, rate, seconds, rule) for marks in labels])


def _length(frames: int, fps: float | None) -> str:
    return "an image" if frames == 1 else f"{frames} frames at {fps:g} per second"


def _numbers(fewest: int, most: float) -> str:
    if fewest == most:
        return str(fewest)
    return f"at least {fewest}" if most == math.inf else f"{fewest} to {most}"
