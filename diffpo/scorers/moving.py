"""The moving world's own judges: the exact verifier of clips, and how far their object moves.

Neither has weights, so their provenance names the code, as the shapes world's judges do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffpo.disk.rows import digest
from diffpo.errors import UserError
from diffpo.media.frames import Clip
from diffpo.scorers.base import Scorer

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MovingVerifier(Scorer):
    """The share of the caption's attributes that a clip of the moving world shows, checked exactly in each segment."""

    name = "moving"
    origin = "none: it is code"
    about = "Share of the caption's attributes that the clip shows, segment by segment: an exact check."
    scale = "0 to 1"
    takes_frames = True

    @property
    def _found(self) -> dict[str, Any]:
        return {"weights": None, "code": _code()}

    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        return self.judge([Clip((image,)) for image in images], prompts)

    def judge(self, media: Sequence[Clip], prompts: Sequence[str]) -> Tensor:
        from diffpo.worlds.moving.verify import verify

        return _scores(self.name, lambda clip, prompt: verify(clip, prompt).score, media, prompts)


@dataclass(frozen=True, kw_only=True)
class MovingMotion(Scorer):
    """How far the object of a clip of the moving world moves from frame to frame, wherever it goes."""

    name = "moving-motion"
    origin = "none: it is code"
    about = "How far the object moves from frame to frame. More is not better."
    scale = "pixels per frame"
    takes_frames = True
    measures = "motion"

    @property
    def _found(self) -> dict[str, Any]:
        return {"weights": None, "code": _code()}

    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        return self.judge([Clip((image,)) for image in images], prompts)

    def judge(self, media: Sequence[Clip], prompts: Sequence[str]) -> Tensor:
        from diffpo.worlds.moving.verify import motion

        return _scores(self.name, lambda clip, _: motion(clip), media, prompts)


def _scores(
    name: str, judge: Callable[[Sequence[Image], str], float], media: Sequence[Clip], prompts: Sequence[str]
) -> Tensor:
    import torch

    try:
        scores = [judge(clip.frames, prompt) for clip, prompt in zip(media, prompts, strict=True)]
    except ValueError as error:
        raise UserError(f"scorer {name} judges clips of the moving world only: {error}") from error
    return torch.tensor(scores, dtype=torch.float32)


@cache
def _code() -> str:
    """Hash of the sources that decide a score."""
    import diffpo.worlds

    folder = Path(diffpo.worlds.__path__[0])
    names = ("moving/scenes", "moving/render", "moving/verify", "shapes/scenes", "shapes/render", "shapes/verify")
    return digest(*((folder / f"{name}.py").read_bytes() for name in names)).hex()
