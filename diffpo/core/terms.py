"""Terms: what the loss of a row is a sum of.

A term judges the two sides by their mean errors over some frames. A row of still images has one term. A row of clips
has one, too, unless the method reads a label for each frame (`dense`, as in DenseDPO, arXiv:2506.03517):

    null      one term: the mean over all frames, labelled by the row
    frame     one term for each frame
    segment   one term for each run of equal labels: the mean over its frames
    joint     one term: the mean over all frames of label times difference (the paper's eq. 7)

A label of a frame says which side is the better one there: 1 the chosen, -1 the rejected, 0 neither. Frames of label
-1 exchange their sides first (`better_first`). After that the chosen side is the better one everywhere, whatever a
loss makes of the two sides. Frames of label 0 take part in no term.

All terms of a batch stand in one flat list, so that an objective sees numbers `[k]` and need not know which row or
which frames they come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from diffpo.core.types import Denoised, Judged, Pair, PairBatch, moved, moved_to

Dense = Literal["frame", "segment", "joint"]
Answer = TypeVar("Answer", Denoised, Judged)


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
        return (moved_to(self.weight, frames) * frames[moved(self.row, frames.device)]).sum(1)

    def sum(self, values: Tensor, rows: int) -> Tensor:
        """Sum values of terms `[k ...]` over each row's terms, `[b ...]`; a row without terms gets zero.

        No atomic additions are used, so that the result is the same every time on any device.
        """
        counts = self.count(rows).tolist()
        if counts == [1] * rows:
            return values
        return torch.stack([own.sum(0) for own in values.split(counts)])

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


def labelled_frames(batch: PairBatch, dense: Dense) -> Terms:
    """Terms of frames that have labels of their own; they belong to sides that `better_first` has put in order.

    A row of ties alone has no term. In `joint` a tie counts as a frame without a difference, so that a term's weights
    add up to the share of the frames that are no ties.
    """
    assert batch.segments is not None, "the columns that a method needs were checked before"
    labels = batch.segments.cpu()
    frames = labels.shape[1]
    place = torch.arange(frames).expand_as(labels)
    if dense == "segment":
        begins = labels.diff(dim=1, prepend=labels[:, :1]) != 0
        place = begins.cumsum(1)
    elif dense == "joint":
        place = torch.zeros_like(place)
    row, frame = labels.nonzero(as_tuple=True)
    found, term = (row * frames + place[row, frame]).unique(return_inverse=True)
    weight = torch.zeros(len(found), frames, dtype=torch.float64)
    weight[term, frame] = 1.0
    weight = weight / (frames if dense == "joint" else weight.sum(1, keepdim=True))
    return Terms(found // frames, weight, torch.ones(len(found)))


def better_first(answers: Pair[Answer], segments: Tensor) -> Pair[Answer]:
    """Exchange the two sides in the frames whose label is -1; `segments` is `[b f]`."""
    turned = segments < 0
    if not turned.any():
        return answers
    return Pair(answers.chosen.mixed(answers.rejected, turned), answers.rejected.mixed(answers.chosen, turned))
