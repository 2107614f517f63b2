"""How much the pixels of a clip change: what a report shows beside quality, since preferences tend to freeze motion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from diffpo.scorers.base import Scorer

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from diffpo.media.frames import Clip


@dataclass(frozen=True, kw_only=True)
class FrameChange(Scorer):
    """The mean absolute difference of a pixel from one frame to the next, in per cent of the whole range."""

    name = "frame-change"
    origin = "none: it is code"
    about = (
        "Mean change of a pixel from one frame to the next. It grows with motion, and with flicker; more is not better."
    )
    scale = "per cent of the range of a pixel"
    takes_frames = True
    measures = "motion"

    @property
    def _found(self) -> dict[str, Any]:
        return {"weights": None}

    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        """A picture does not change."""
        import torch

        return torch.zeros(len(images))

    def judge(self, media: Sequence[Clip], prompts: Sequence[str]) -> Tensor:
        import torch

        return torch.tensor([_change(clip.frames) for clip in media], dtype=torch.float32)


def _change(frames: Sequence[Image]) -> float:
    pixels = (np.asarray(frame, np.int16) for frame in frames)
    before, changes = next(pixels), [0.0]
    for after in pixels:
        changes.append(float(np.abs(after - before).mean()))
        before = after
    return 100 / 255 * sum(changes) / max(1, len(changes) - 1)
