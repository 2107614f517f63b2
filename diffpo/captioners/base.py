"""What captioners, perturbers, labellers, embedders and judges of users are: frozen sets of options.

They write captions, compare clips, turn what a person preferred into numbers, or say what they would prefer.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from PIL.Image import Image

from diffpo.core.block import FramesPerSecond
from diffpo.media.frames import Clip
from diffpo.scorers.base import Batched

Level = Literal["weak", "medium", "strong"]
Verdict = Literal["first", "second", "tie"]
"""Which of two clips is better."""


@dataclass(frozen=True, kw_only=True)
class Asked(Batched, ABC):
    """Something that is asked about images or texts. Weights are loaded when the first question comes."""

    name: ClassVar[str]
    """As in `CAPTIONERS`, `PERTURBERS`, `LABELLERS`, `EMBEDDERS` or `JUDGES`, and in the provenance of results."""

    @property
    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """What decides an answer: weights, instruction, sampling. Known without loading the weights.

        Raises:
            UserError: If the weights cannot be found.
        """


@dataclass(frozen=True, kw_only=True)
class Captioner(Asked, ABC):
    """Says what an image shows."""

    frames: ClassVar[int] = 1
    """How many frames of a clip it looks at, at most; an option where that can be chosen."""

    @abstractmethod
    def caption(self, images: Sequence[Image], prompts: Sequence[str], keys: Sequence[int]) -> list[str]:
        """Caption each image.

        Args:
            images: Of any size; RGB.
            prompts: What each was made for; whether the captioner looks at it is an option.
            keys: A number per image: with the options, all that its random draws depend on.

        Returns:
            One caption per image, without white space around it; an empty one says that nothing came out.

        Raises:
            UserError: If the weights cannot be found or are of the wrong kind, or such an image or prompt cannot be
                captioned.
        """

    def describe(self, clips: Sequence[Clip], prompts: Sequence[str], keys: Sequence[int]) -> list[str]:
        """Caption each clip (an image is one of one frame) as `caption` does an image: here by its first frame."""
        return self.caption([clip.first for clip in clips], prompts, keys)


@dataclass(frozen=True, kw_only=True)
class Perturber(Asked, ABC):
    """Rewrites a caption so that it fits its image less well."""

    @abstractmethod
    def perturb(self, captions: Sequence[str], keys: Sequence[int]) -> list[str]:
        """Rewrite each caption, none of which is empty; keys, result and errors are those of `Captioner.caption`."""


@dataclass(frozen=True)
class Segment:
    """The same stretch of two clips that were made for one prompt."""

    prompt: str
    first: tuple[Image, ...]
    """Frames in the order of time, RGB."""
    second: tuple[Image, ...]
    key: int
    """Together with the options all that random draws depend on."""


@dataclass(frozen=True, kw_only=True)
class Labeller(Asked, ABC):
    """Says which of two clips is better in a segment."""

    fps: FramesPerSecond = 8.0
    """Frames that are looked at, per second of each clip. 8 is DenseDPO's."""

    @property
    def rule(self) -> dict[str, Any]:
        """What decides, besides, how `verdict` reads it."""
        return {}

    @abstractmethod
    def ask(self, segments: Sequence[Segment]) -> list[list[Any]]:
        """Compare the clips of each segment.

        Returns:
            For each segment all that was answered, as plain JSON values: kept, shown to people, and read by `verdict`.

        Raises:
            UserError: Nothing can be asked.
        """

    @abstractmethod
    def verdict(self, answers: Sequence[Any]) -> Verdict | None:
        """Read what `ask` gave for a segment; None: it is nothing that answers the question."""

    @abstractmethod
    def cost(self, segments: int, frames: int) -> str:
        """Say roughly what asking about so many segments, whose two clips have so many frames together, takes."""


@dataclass(frozen=True)
class Choice:
    """What a person preferred to what."""

    prompt: str
    chosen: Image
    """Any size, RGB."""
    rejected: Image
    vector: np.ndarray | None = None
    """What the table says of the person, where an embedder reads that; the images may be anything then."""


@dataclass(frozen=True)
class Portrait:
    """What an embedder makes of some choices of a person."""

    states: np.ndarray
    """`[n d]` float32, as the network gave them."""
    profile: str | None = None
    """The same in words, where the embedder writes any."""


@dataclass(frozen=True, kw_only=True)
class UserEmbedder(Asked, ABC):
    """Turns a person's choices into numbers that a model can be told."""

    is_vector: ClassVar[bool]
    """Whether what it gives is a vector, of which the length says nothing; else it is states of a network."""
    reads_vectors: ClassVar[bool] = False
    """Whether it reads vectors that the table holds, not the images."""

    def normalise(self, states: np.ndarray) -> np.ndarray:
        """Bring states `[... n d]` to mean 0 and deviation 1 along d: language models have a few huge channels."""
        x = states.astype(np.float32)
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)

    @abstractmethod
    def embed(self, choices: Sequence[Choice]) -> Portrait:
        """Embed a person by some of their choices, of which there is one at least.

        Raises:
            UserError: The weights cannot be found or are of the wrong kind, or nothing comes out.
        """


@dataclass(frozen=True)
class Case:
    """Two images for a prompt, and what the user who judges them chose before."""

    user: str
    shown: tuple[Choice, ...]
    """Some of the user's own choices; none for a judge who knows the user."""
    prompt: str
    first: Image
    second: Image
    key: int
    """Together with the options all that random draws depend on."""


@dataclass(frozen=True, kw_only=True)
class UserJudge(Asked, ABC):
    """Says which of two images a user would prefer."""

    needs_choices: ClassVar[bool]
    """Whether it has to be shown choices of the user."""

    @abstractmethod
    def judge(self, cases: Sequence[Case]) -> list[float]:
        """Judge: 1 where the first image would be preferred, 0 where the second one would, 1/2 for a tie.

        Raises:
            UserError: Nothing can be asked, or somebody is unknown.
        """
