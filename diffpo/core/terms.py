"""Terms: what the loss of a row is a sum of.

A term judges the two sides by their mean errors over some frames. A row of still images has one term. A row of clips
has one, too, unless the method judges frame by frame. All terms of a batch stand in one flat list, so that an
objective sees numbers `[k]` and need not know which row or which frames they come from; frames whose label is a tie
have no term at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffpo.core.types import PairBatch


@dataclass(frozen=True)
class Terms:
    """The terms of a batch, row by row. All tensors lie on the CPU."""

    row: Tensor
    """`[k]` the row in the batch that each term belongs to, ascending."""
    weight: Tensor
    """`[k f]` the share of each frame in the term, not negative."""
    preference: Tensor
    """`[k]` P(chosen > rejected) of the term."""

    def mean(self, frames: Tensor) -> Tensor:
        """Average values of frames `[b f]` over each term's frames, `[k]`."""
        return (self.weight.to(frames) * frames[self.row.to(frames.device)]).sum(1)

    def sum(self, values: Tensor, rows: int) -> Tensor:
        """Sum values of terms `[k ...]` over each row's terms, `[b ...]`; a row without terms gets zero.

        No atomic additions are used, so that the result is the same every time on any device.
        """
        return torch.stack([own.sum(0) for own in values.split(self.count(rows).tolist())])

    def count(self, rows: int) -> Tensor:
        """Number of terms of each row, `[b]`."""
        return torch.bincount(self.row, minlength=rows)

    def take(self, which: Tensor) -> Terms:
        """The terms at the positions `which`, `[n]`."""
        return Terms(self.row[which], self.weight[which], self.preference[which])


def whole_rows(batch: PairBatch) -> Terms:
    """One term per row: the mean over all its frames, labelled by the row's preference."""
    frames = batch.shape[1]
    weight = torch.full((batch.size, frames), 1 / frames, dtype=torch.float64)
    return Terms(torch.arange(batch.size), weight, batch.preference.cpu())
