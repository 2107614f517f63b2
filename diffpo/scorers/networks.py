"""What scorers with a network share: their options, and a check of what comes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from diffpo.core.block import Count
from diffpo.errors import UserError
from diffpo.scorers.base import Scorer

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class NetworkScorer(Scorer, ABC):
    """A scorer that judges with a network."""

    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of weights and computation; half precision makes artificial ties."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, ..."""
    batch: Count = 32
    """Images at a time."""

    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        """Score each image for its prompt: `[n]` float32. See `Scorer.score`."""
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
    """A scorer whose network sees image and prompt at once, so that nothing of one can be kept for another."""

    def _judge(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        import torch

        parts = []
        for start in range(0, len(images), self.batch):
            rows = slice(start, start + self.batch)
            rgb = [image.convert("RGB") for image in images[rows]]
            parts.append(self._score_batch(rgb, list(prompts[rows])).float().cpu())
        return torch.cat(parts)

    @abstractmethod
    def _score_batch(self, images: list[Image], prompts: list[str]) -> Tensor:
        """Score one batch of RGB images: `[b]`, in any dtype and place."""
