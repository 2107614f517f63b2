"""A table's labels of segments as labels of latent frames, for methods that read them (`method.dense`)."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from diffpo.core.segments import latent_labels, segments_of
from diffpo.data.records import Source, Table
from diffpo.errors import UserError

NAMED = 8
"""Rows that a message names."""


class SegmentLabels:
    """The column `segments` of a table, mapped to latent frames when a batch asks for it."""

    def __init__(
        self,
        table: Table,
        frames: np.ndarray,
        source: Source,
        held: Callable[[int], Sequence[range]],
        fps: float | None,
    ):
        """Check that every usable row has as many labels as its clip has segments.

        Args:
            table: The pairs; it has the column `segments`.
            frames: `[n]` frames of each row's clips; 0 where the row is dropped.
            source: How long a segment is, and the rule for latent frames of two segments.
            held: Says which pixel frames each latent frame of a clip of so many frames holds.
            fps: Frames per second of the clips, as the model gets them; None: there are images only.

        Raises:
            UserError: Some rows have another number of labels.
        """
        self._table, self._frames, self._source, self._held, self._fps = table, frames, source, held, fps
        self._check()

    def _check(self) -> None:
        from pyarrow import compute

        usable = np.flatnonzero(self._frames)
        found = compute.list_value_length(self._table.arrow("segments")).to_numpy()[usable]
        wrong = np.zeros(len(usable), bool)
        for frames in np.unique(self._frames[usable]).tolist():
            wrong |= (self._frames[usable] == frames) & ~np.isin(found, list(self._allowed(frames)))
        if not wrong.any():
            return
        told = [
            f"row {self._table.origin[row]} has {count} for {_words(self._frames[row], self._fps)}, which is "
            f"{' or '.join(map(str, self._allowed(self._frames[row])))}"
            for row, count in zip(usable[wrong][:NAMED].tolist(), found[wrong].tolist(), strict=False)
        ]
        more = f"; and {wrong.sum() - NAMED} more" if wrong.sum() > NAMED else ""
        raise UserError(
            f"{self._table.path}: `segments` has one label for each {self._source.segment_seconds:g} seconds "
            f"(data.segment_seconds) of a clip; {wrong.sum()} rows have another number: {'; '.join(told)}{more}. Are "
            "the labels those of other clips? Mend or remove these rows, or set data.segment_seconds."
        )

    def _allowed(self, frames: int) -> range:
        return segments_of(frames, self._rate(frames), self._source.segment_seconds)

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


def _words(frames: int, fps: float | None) -> str:
    return "an image" if frames == 1 else f"{frames} frames at {fps:g} per second"
