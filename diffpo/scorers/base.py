"""What a scorer is: a frozen set of options that turns images and prompts into numbers. Some have a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from diffpo.core.block import Block, Count
from diffpo.disk.ahead import ahead, groups
from diffpo.disk.weights import Weights
from diffpo.errors import UserError
from diffpo.scorers.parts import find_file

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from diffpo.media.frames import Clip


@dataclass(frozen=True, kw_only=True)
class Batched(Block):
    """The option of whatever works on several rows at once."""

    batch: Count = 8
    """Images or texts at a time."""


@dataclass(frozen=True, kw_only=True)
class OnDevice(Batched):
    """The options of whatever runs a network."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda`, ..."""


@dataclass(frozen=True, kw_only=True)
class Scorer(Block, ABC):
    """Judges one medium for its prompt; higher is better. Weights are loaded when the first one is scored."""

    name: ClassVar[str]
    """As in `SCORERS`, in score tables and in reports."""
    origin: ClassVar[str]
    """Where its weights come from unless an option says otherwise, for people."""
    about: ClassVar[str]
    """What is measured, for a reader of the report."""
    scale: ClassVar[str]
    """What a score is counted in; for some scorers this is an option."""
    measures: ClassVar[str] = "quality"
    """`motion`: more is not better, and a report shows it beside the quality of clips."""
    reads_rate: ClassVar[bool] = False
    """Whether a score depends on how many frames per second a clip has."""
    takes_frames: ClassVar[bool] = False
    """Whether it looks at the frames of a clip together: see `ImageScorer` for the others."""

    @property
    def provenance(self) -> dict[str, Any]:
        """What decides a score, known without loading the weights. Scores of equal provenance may be compared.

        Raises:
            UserError: If the weights cannot be found.
        """
        known = {"scorer": self.name, "about": self.about, **self._found, "scale": self.scale}
        return known if self.measures == "quality" else known | {"measures": self.measures}

    @property
    @abstractmethod
    def _found(self) -> dict[str, Any]:
        """What decides a score beside its scale: weights and other parts, preprocessing, options, libraries."""

    @abstractmethod
    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        """Score each image for its prompt.

        Args:
            images: Of any size; RGB.
            prompts: One per image.

        Returns:
            `[n]` float32 on the CPU.

        Raises:
            UserError: If the weights cannot be found or are of the wrong kind, or the scorer cannot judge such an
                image or prompt.
        """

    @abstractmethod
    def judge(self, media: Sequence[Clip], prompts: Sequence[str]) -> Tensor:
        """Score each medium, which is a clip (an image is one of one frame), for its prompt; else as `score`."""


@dataclass(frozen=True, kw_only=True)
class ImageScorer(Scorer, ABC):
    """A scorer of images: a clip's score is the mean over its frames, and is called so (see `scores.scored_as`)."""

    frames: Count | None = None
    """Of a clip so many frames, evenly spread from its first to its last, are judged; null: all of them."""

    @property
    def provenance(self) -> dict[str, Any]:
        return super().provenance | ({} if self.frames is None else {"frames": self.frames})

    def judge(self, media: Sequence[Clip], prompts: Sequence[str]) -> Tensor:
        import torch

        clips = [clip.frames if self.frames is None else clip.some(self.frames) for clip in media]
        told = [prompt for clip, prompt in zip(clips, prompts, strict=True) for _ in clip]
        parts = self.score([frame for clip in clips for frame in clip], told).split([len(clip) for clip in clips])
        return torch.stack([part.mean() for part in parts]) if parts else torch.zeros(0)


@dataclass(frozen=True, kw_only=True)
class ClipScorer(Scorer, ABC):
    """A scorer that looks at the frames of a clip together; it refuses what is too short, such as an image."""

    takes_frames = True
    least: ClassVar[int] = 2
    """Frames that it needs."""

    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        from diffpo.media.frames import Clip

        return self.judge([Clip((image,)) for image in images], prompts)

    def judge(self, media: Sequence[Clip], prompts: Sequence[str]) -> Tensor:
        import torch

        for clip in media:
            if len(clip.frames) < self.least:
                one = "is an image" if len(clip.frames) == 1 else f"is one of {len(clip.frames)} frames"
                raise UserError(f"{self.name} judges clips of at least {self.least} frames, and here {one}.")
        with torch.no_grad():
            scores = [self._judge_clip(*pair) for pair in zip(media, prompts, strict=True)]
        return torch.tensor(scores, dtype=torch.float32)

    @abstractmethod
    def _judge_clip(self, clip: Clip, prompt: str) -> float:
        """Score one clip, which is long enough, for its prompt."""


@dataclass(frozen=True, kw_only=True)
class WithNetwork(OnDevice, Scorer, ABC):
    """The options of a scorer that has a network."""

    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of weights and computation; half precision makes artificial ties."""
    batch: Count = 32
    """Images at a time."""

    @property
    def provenance(self) -> dict[str, Any]:
        return super().provenance | {"dtype": self.dtype}


@dataclass(frozen=True, kw_only=True)
class NetworkScorer(WithNetwork, ImageScorer, ABC):
    """A scorer that judges images with a network."""

    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        import torch

        assert len(images) == len(prompts), (len(images), len(prompts))
        if not images:
            return torch.zeros(0)
        with torch.no_grad():
            scores = self._judge(images, prompts)
        if not scores.isfinite().all():
            first = int((~scores.isfinite()).nonzero()[0])
            remedy = "Try dtype=float32." if self.dtype != "float32" else "Its weights may be damaged."
            raise UserError(f"{self.name} scored image {first} of {len(images)} as {scores[first].item()}. {remedy}")
        return scores

    @abstractmethod
    def _judge(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        """Score at least one image: `[n]` float32 on the CPU."""


@dataclass(frozen=True, kw_only=True)
class JointScorer(NetworkScorer, ABC):
    """A scorer whose network sees image and prompt at once, so that nothing of one can be kept for another.

    Its weights are one file in the authors' layout, read into a network of transformers.
    """

    file: ClassVar[str]
    """Name of the authors' file."""
    what: ClassVar[str]
    """What the weights are, for messages: "an MPS"."""

    path: str
    """Hub id, local folder, or file with the weights: safetensors, or a torch file of weights alone."""

    @cached_property
    def _weights(self) -> Weights:
        return find_file(self.path, file=self.file, what=self.what)

    @property
    def _folder(self) -> Weights:
        return Weights(self._weights.path.parent)

    @property
    def _found(self) -> dict[str, Any]:
        return {"weights": self._weights.identity, "library": versions("transformers", "pillow")}

    def _judge(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        import torch

        _ = self._loaded  # once, before threads ask for it
        prepared = ahead(self._prepare, groups(map(plain, images), self.batch), workers=2, depth=2)
        batches = zip(prepared, groups(prompts, self.batch), strict=True)
        return torch.cat([self._score_batch(*batch).float().cpu() for batch in batches])

    @cached_property
    @abstractmethod
    def _loaded(self) -> tuple[Any, ...]:
        """The networks, and what prepares their input."""

    @abstractmethod
    def _prepare(self, images: list[Image]) -> Any:
        """Make one batch of RGB images what the network takes, on the CPU; threads do it a little ahead."""

    @abstractmethod
    def _score_batch(self, pixels: Any, prompts: list[str]) -> Tensor:
        """Score one batch of what `_prepare` made: `[b]`, in any dtype and place."""


def plain(image: Image) -> Image:
    """An image as RGB, with nothing but its pixels: processors lay a colour that it names as transparent on white."""
    rgb = image.convert("RGB")  # a copy, also of an image that is RGB
    rgb.info = {}
    return rgb


def versions(*packages: str) -> str:
    """Name packages and their versions, without the build ("+cpu"): it does not decide a score."""
    return ", ".join(f"{package} {version(package).partition('+')[0]}" for package in packages)
