"""What a scorer is: a frozen set of options that turns images and prompts into numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from diffpo.core.block import Block

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Scorer(Block, ABC):
    """Judges one image for its prompt; higher is better. Weights are loaded when the first image is scored."""

    name: ClassVar[str]
    """As in `SCORERS`, in score tables and in reports."""
    origin: ClassVar[str]
    """Where its weights come from unless an option says otherwise, for people."""

    @property
    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """What decides a score: weights, dtype, preprocessing, scale. Scores of equal provenance may be compared.

        Known without loading the weights. `about` says what is measured, in a sentence for a reader of the report.

        Raises:
            UserError: If the weights cannot be found.
        """

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
