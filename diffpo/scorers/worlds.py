"""The embedded worlds' own judges: exact verifiers, the utility of simulated annotators, the motion of clips.

None has weights, so their provenance names the code: scores of an older grammar, verifier or taste are not taken for
theirs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from diffpo.disk.rows import digest
from diffpo.errors import UserError
from diffpo.scorers.base import ClipScorer, ImageScorer, Scorer

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from diffpo.media.frames import Clip

SHAPES = ("shapes/scenes", "shapes/render", "shapes/verify")
SUBJECT = ("subject/scenes", "subject/verify")
MOVING = ("moving/scenes", "moving/render", "moving/verify")


@dataclass(frozen=True, kw_only=True)
class WorldScorer(Scorer, ABC):
    """A judge that is code."""

    origin = "none: it is code"
    judges: ClassVar[str]
    """What it can judge, for messages."""
    sources: ClassVar[tuple[str, ...]]
    """What decides a score, below `diffpo.worlds`."""

    @property
    def _found(self) -> dict[str, Any]:
        return {"weights": None, "code": _code(self.sources)}

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise UserError(f"scorer {self.name} judges {self.judges} only: {error}") from error


@dataclass(frozen=True, kw_only=True)
class ImageJudge(WorldScorer, ImageScorer, ABC):
    """A judge of images."""

    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        import torch

        with self._refusing():
            scores = [self._judge_image(*pair) for pair in zip(images, prompts, strict=True)]
        return torch.tensor(scores, dtype=torch.float32)

    @abstractmethod
    def _judge_image(self, image: Image, prompt: str) -> float:
        """Score one image for its prompt."""


@dataclass(frozen=True, kw_only=True)
class ShapesJudge(ImageJudge, ABC):
    """A judge of images of the shapes world."""

    judges = "images of the shapes world"
    sources = (*SHAPES, "shapes/annotators")


@dataclass(frozen=True, kw_only=True)
class ShapesVerifier(ShapesJudge):
    """The share of the caption's attributes that an image of the shapes world shows, checked exactly."""

    name = "shapes"
    about = "Share of the caption's attributes that the image shows: an exact check, no learned judge."
    scale = "0 to 1"

    def _judge_image(self, image: Image, prompt: str) -> float:
        from diffpo.worlds.shapes.verify import verify

        return verify(image, prompt).score


@dataclass(frozen=True, kw_only=True)
class ShapesUtility(ShapesJudge):
    """How much the simulated annotators who labelled the shapes world's pairs like an image."""

    name = "shapes-utility"
    about = "Utility of the simulated annotators who labelled the training pairs. No humans were asked."
    scale = "utility"

    annotator: str | None = None
    """One of the annotators; None is the mean over all of them."""

    @property
    def _found(self) -> dict[str, Any]:
        return super()._found | {"judge": self.annotator or "mean of all annotators"}

    def _judge_image(self, image: Image, prompt: str) -> float:
        from diffpo.worlds.shapes.annotators import utility

        return utility(image, prompt, self.annotator)


@dataclass(frozen=True, kw_only=True)
class SubjectJudge(ImageJudge, ABC):
    """A judge of images of the subject world."""

    judges = "images of the subject world"
    sources = (*SUBJECT, *SHAPES)


@dataclass(frozen=True, kw_only=True)
class SubjectFidelity(SubjectJudge):
    """How well an image shows the subject of the subject world, wherever it stands."""

    name = "subject"
    about = "How well the image shows the subject of the subject world, whatever its prompt says: an exact measure."
    scale = "0 to 1"

    def _judge_image(self, image: Image, prompt: str) -> float:
        from diffpo.worlds.subject.verify import subject_fidelity

        return subject_fidelity(image)


@dataclass(frozen=True, kw_only=True)
class SubjectPrompt(SubjectJudge):
    """How well an image of the subject world shows what its prompt says beside the subject."""

    name = "subject-prompt"
    about = "Share of what the prompt says beside the subject's colours that the image shows: an exact check."
    scale = "0 to 1"

    def _judge_image(self, image: Image, prompt: str) -> float:
        from diffpo.worlds.subject.verify import prompt_fidelity

        return prompt_fidelity(image, prompt)


@dataclass(frozen=True, kw_only=True)
class MovingJudge(WorldScorer, ClipScorer, ABC):
    """A judge of clips of the moving world; what is too short is refused as any other clip that is none of its."""

    judges = "clips of the moving world"
    sources = (*MOVING, *SHAPES)
    least = 1

    def judge(self, media: Sequence[Clip], prompts: Sequence[str]) -> Tensor:
        with self._refusing():
            return super().judge(media, prompts)


@dataclass(frozen=True, kw_only=True)
class MovingVerifier(MovingJudge):
    """The share of the caption's attributes that a clip of the moving world shows, checked exactly in each segment."""

    name = "moving"
    about = "Share of the caption's attributes that the clip shows, segment by segment: an exact check."
    scale = "0 to 1"

    def _judge_clip(self, clip: Clip, prompt: str) -> float:
        from diffpo.worlds.moving.verify import verify

        return verify(clip.frames, prompt).score


@dataclass(frozen=True, kw_only=True)
class MovingMotion(MovingJudge):
    """How far the object of a clip of the moving world moves from frame to frame, wherever it goes."""

    name = "moving-motion"
    about = "How far the object moves from frame to frame. More is not better."
    scale = "pixels per frame"
    measures = "motion"

    def _judge_clip(self, clip: Clip, prompt: str) -> float:
        from diffpo.worlds.moving.verify import motion

        return motion(clip.frames)


@cache
def _code(sources: tuple[str, ...]) -> str:
    """Hash of the sources that decide a score."""
    import diffpo.worlds

    folder = Path(diffpo.worlds.__path__[0])
    return digest(*((folder / f"{name}.py").read_bytes() for name in sources)).hex()
