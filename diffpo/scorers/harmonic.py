"""The lambda-harmonic reward of RPO (Miao et al. 2024, arXiv:2407.12164): like its subject, and true to its prompt.

    r = 1 / ( lambda / I + (1 - lambda) / T )

I says how alike an image is to the reference pictures, T how well it fits its prompt, both brought to 0 ... 1: a score
of `low` is 0, one of `high` is 1, and what lies beyond counts as these. The authors take cosines of ALIGN, with -1 as
low and 1 as high: (cos + 1) / 2. A harmonic mean is small where one of its parts is: neither can be bought with the
other. They label pairs with lambda 0 (T alone), and choose the update with 0.3, 0.5 or 0.7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import diffpo.scorers as registry
from diffpo.core.block import Finite, Fraction, Named
from diffpo.errors import ConfigError
from diffpo.scorers.base import ImageScorer, Scorer

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

ALIGN = "kakaobrain/align-base"
"""The authors' network for both parts."""
TINY = 1e-8
"""Added to both parts, as released, so that nothing is divided by zero."""


@dataclass(frozen=True, kw_only=True)
class LambdaHarmonic(ImageScorer):
    """The harmonic mean of a scorer of the subject and a scorer of the prompt."""

    name = "lambda-harmonic"
    about = "Whether an image is like its subject and fits its prompt: the harmonic mean of two scorers (RPO)."
    origin = f"those of its parts; the paper's are clip-i and clip with Hub {ALIGN}"
    scale = "0 to 1"

    # These types are read when the first block is made; `SCORERS` is whole then.
    image: Annotated[Scorer, Named(registry.SCORERS, "scorer")]
    """I: what judges the subject, such as `{name: clip-i, model: kakaobrain/align-base, references: dog}`."""
    text: Annotated[Scorer, Named(registry.SCORERS, "scorer")]
    """T: what judges the prompt, such as `{name: clip, model: kakaobrain/align-base, without: sks}`."""
    image_weight: Fraction = 0.5
    """The paper's lambda: 1 is I alone, 0 is T alone."""
    image_range: tuple[Finite, Finite] = (-1.0, 1.0)
    """Scores of `image` that become 0 and 1. Where real scores fill little of the range of a cosine, take what the base
    model's images get and what the reference pictures get; `diffpo data subject` measures both."""
    text_range: tuple[Finite, Finite] = (-1.0, 1.0)
    """Scores of `text` that become 0 and 1."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: Values are not possible.
        """
        super().__post_init__()
        for name in ("image_range", "text_range"):
            low, high = getattr(self, name)
            if not low < high:
                raise ConfigError(f"{name} goes from {low:g} to {high:g}; the first must be the smaller one")

    @property
    def _found(self) -> dict[str, Any]:
        return {
            "image": self.image.provenance,
            "text": self.text.provenance,
            "image_weight": self.image_weight,
            "image_range": list(self.image_range),
            "text_range": list(self.text_range),
        }

    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        if self.image_weight == 0:
            return self._text(images, prompts)
        if self.image_weight == 1:
            return self._image(images, prompts)
        image, text = self._image(images, prompts) + TINY, self._text(images, prompts) + TINY
        return 1 / (self.image_weight / image + (1 - self.image_weight) / text)

    def _image(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        return _scaled(self.image.score(images, prompts), self.image_range)

    def _text(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        return _scaled(self.text.score(images, prompts), self.text_range)


def _scaled(scores: Tensor, limits: tuple[float, float]) -> Tensor:
    low, high = limits
    return ((scores - low) / (high - low)).clamp(0, 1)
