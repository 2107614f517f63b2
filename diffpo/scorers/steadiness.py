"""How steady a clip's pixels are, without a network: two of VBench's dimensions, one of them by another interpolation.

    flicker              VBench's temporal_flickering (Huang et al., arXiv:2311.17982): its own formula
    smoothness-linear    the formula of VBench's motion_smoothness, but frames are interpolated by the mean of their
                         neighbours, where VBench runs the network AMT-S: not comparable with VBench's numbers

Both are highest for a clip that stands still, so neither may be shown without a measure of motion beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from diffpo.scorers.base import ClipScorer

if TYPE_CHECKING:
    from diffpo.media.frames import Clip


@dataclass(frozen=True, kw_only=True)
class _Steadiness(ClipScorer):
    origin = "none: it is code"
    scale = "0 to 1"

    @property
    def _found(self) -> dict[str, Any]:
        return {"weights": None}


@dataclass(frozen=True, kw_only=True)
class Flicker(_Steadiness):
    """(255 - the mean absolute difference of consecutive frames) / 255. VBench asks it of still scenes only."""

    name = "flicker"
    about = "VBench's temporal flickering: 1 is no change between frames. A clip that stands still is the best."

    def _judge_clip(self, clip: Clip, prompt: str) -> float:
        frames = [np.asarray(frame, np.float32) for frame in clip.frames]
        return _sameness(pairwise(frames))


@dataclass(frozen=True, kw_only=True)
class SmoothnessLinear(_Steadiness):
    """(255 - the mean absolute difference of every second frame from the mean of its neighbours) / 255."""

    name = "smoothness-linear"
    about = "How near every second frame is to the mean of its neighbours. A clip that stands still is the best."
    least = 3

    def _judge_clip(self, clip: Clip, prompt: str) -> float:
        frames = [np.asarray(frame, np.float32) for frame in clip.frames]
        neighbours = ((before + after) / 2 for before, after in pairwise(frames[::2]))
        return _sameness(zip(frames[1::2], neighbours, strict=False))  # the last of an even number has one neighbour


def _sameness(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    return (255 - float(np.mean([np.abs(one - other).mean() for one, other in pairs]))) / 255
