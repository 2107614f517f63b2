"""What captioners and perturbers are: frozen sets of options that turn images, or captions, into captions."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from PIL.Image import Image

from diffpo.scorers.base import Batched

Level = Literal["weak", "medium", "strong"]


@dataclass(frozen=True, kw_only=True)
class Writer(Batched, ABC):
    """Writes captions. Weights are loaded when the first one is written."""

    name: ClassVar[str]
    """As in `CAPTIONERS` or `PERTURBERS`, and in the provenance of tables."""

    @property
    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """What decides a caption: weights, instruction, sampling. Known without loading the weights.

        Raises:
            UserError: If the weights cannot be found.
        """


@dataclass(frozen=True, kw_only=True)
class Captioner(Writer, ABC):
    """Says what an image shows."""

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


@dataclass(frozen=True, kw_only=True)
class Perturber(Writer, ABC):
    """Rewrites a caption so that it fits its image less well."""

    @abstractmethod
    def perturb(self, captions: Sequence[str], keys: Sequence[int]) -> list[str]:
        """Rewrite each caption, none of which is empty; keys, result and errors are those of `Captioner.caption`."""
