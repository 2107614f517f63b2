"""The shapes world's own judges: the exact verifier, and the utility of its simulated annotators.

Neither has weights, so their provenance names the code: scores of an older grammar, verifier or taste are not taken
for theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffpo.disk.rows import digest
from diffpo.errors import UserError
from diffpo.scorers.base import ImageScorer

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ShapesVerifier(ImageScorer):
    """The share of the caption's attributes that an image of the shapes world shows, checked exactly."""

    name = "shapes"
    origin = "none: it is code"
    about = "Share of the caption's attributes that the image shows: an exact check, no learned judge."
    scale = "0 to 1"

    @property
    def _found(self) -> dict[str, Any]:
        return {"weights": None, "code": _code()}

    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        from diffpo.worlds.shapes.verify import verify

        return _scores(self.name, lambda image, prompt: verify(image, prompt).score, images, prompts)


@dataclass(frozen=True, kw_only=True)
class ShapesUtility(ImageScorer):
    """How much the simulated annotators who labelled the shapes world's pairs like an image."""

    name = "shapes-utility"
    origin = "none: it is code"
    about = "Utility of the simulated annotators who labelled the training pairs. No humans were asked."
    scale = "utility"

    annotator: str | None = None
    """One of the annotators; None is the mean over all of them."""

    @property
    def _found(self) -> dict[str, Any]:
        return {"weights": None, "code": _code(), "judge": self.annotator or "mean of all annotators"}

    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        from diffpo.worlds.shapes.annotators import utility

        return _scores(self.name, partial(utility, annotator=self.annotator), images, prompts)


def _scores(name: str, judge: Callable[[Image, str], float], images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
    import torch

    try:
        return torch.tensor([judge(*pair) for pair in zip(images, prompts, strict=True)], dtype=torch.float32)
    except ValueError as error:
        raise UserError(f"scorer {name} judges images of the shapes world only: {error}") from error


@cache
def _code() -> str:
    """Hash of the sources that decide a score."""
    import diffpo.worlds.shapes

    folder = Path(diffpo.worlds.shapes.__path__[0])
    names = ("scenes", "render", "verify", "annotators")
    return digest(*((folder / f"{name}.py").read_bytes() for name in names)).hex()
