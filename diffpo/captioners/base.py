"""What captioners and perturbers are: frozen sets of options that turn images, or captions, into captions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from diffpo.scorers.base import Batched

if TYPE_CHECKING:
    from PIL.Image import Image

Level = Literal["weak", "medium", "strong"]


@dataclass(frozen=True, kw_only=True)
class Captioner(Batched, ABC):
    """Says what an image shows. Weights are loaded when the first image is captioned."""

    name: ClassVar[str]
    """As in `CAPTIONERS`, and in the provenance of tables."""

    @property
    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """What decides a caption: weights, instruction, sampling. Known without loading the weights.

        Raises:
            UserError: If the weights cannot be found.
        """

    @abstractmethod
    def caption(self, images: Sequence[Image], prompts: Sequence[str], keys: Sequence[int]) -> list[str]:
        """Caption each image.

        Args:
            images: Of any size; RGB.
            prompts: What each was made for; whether the captioner looks at it is an option.
            keys: A number per image: with the options, all that its random draws depend on.

        Returns:
            One caption per image, without white space around it. An empty one says that the captioner had nothing to
            say.

        Raises:
            UserError: If the weights cannot be found or are of the wrong kind, or such an image or prompt cannot be
                captioned.
        """


@dataclass(frozen=True, kw_only=True)
class Perturber(Batched, ABC):
    """Rewrites a caption so that it fits its image less well. Weights are loaded when the first one is rewritten."""

    name: ClassVar[str]
    """As in `PERTURBERS`, and in the provenance of tables."""

    @property
    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """What decides a result, known without loading the weights; see `Captioner.provenance`."""

    @abstractmethod
    def perturb(self, captions: Sequence[str], keys: Sequence[int]) -> list[str]:
        """Rewrite each caption.

        Args:
            captions: None of them empty.
            keys: A number per caption: with the options, all that its random draws depend on.

        Returns:
            One text per caption, without white space around it; an empty one says that nothing came out.

        Raises:
            UserError: If the weights cannot be found or are of the wrong kind, or such a caption cannot be rewritten.
        """
