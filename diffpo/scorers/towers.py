"""What scorers of CLIP type share: a network that turns images and prompts into features, and the arithmetic after it.

Scorers whose features are made alike (the same weights, preprocessing, dtype, device) share one `Tower` for as long as
one of them lives. It remembers the last images by their content, so that several scorers of one call run it once.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from diffpo.scorers.base import NetworkScorer, plain

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_KEPT = 1024
_towers: WeakValueDictionary[str, Tower] = WeakValueDictionary()


class Tower(ABC):
    """A CLIP in memory. Features are `[n d]` float32 on the CPU, not normalised."""

    def __init__(self) -> None:
        self._images: dict[str, Tensor] = {}
        self._prompts: dict[str, Tensor] = {}

    @property
    @abstractmethod
    def logit_scale(self) -> float:
        """The learned factor of the cosine, exp of the parameter."""

    @abstractmethod
    def encode_images(self, images: Sequence[Image]) -> Tensor:
        """Features of one batch of RGB images, `[b d]`, in the network's own dtype and place."""

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Features of one batch of prompts, `[b d]`, in the network's own dtype and place."""

    def image_features(self, images: Sequence[Image], batch: int) -> Tensor:
        """Features of images; those of the last images are remembered."""
        rgb = [plain(image) for image in images]
        return _remembered(self._images, [_digest(image) for image in rgb], rgb, batch, self.encode_images)

    def prompt_features(self, prompts: Sequence[str], batch: int) -> Tensor:
        """Features of prompts; those of the last prompts are remembered."""
        return _remembered(self._prompts, list(prompts), prompts, batch, self.encode_prompts)


class TowerSpec(ABC):
    """Which tower: its weights and preprocessing, found but not loaded."""

    @property
    @abstractmethod
    def record(self) -> dict[str, Any]:
        """All that decides the features beside dtype and device, for a scorer's provenance."""

    @abstractmethod
    def load(self, dtype: str, device: str) -> Tower:
        """Load the network.

        Raises:
            UserError: If the weights are of the wrong kind.
        """


@dataclass(frozen=True, kw_only=True)
class TowerScorer(NetworkScorer, ABC):
    """A scorer that looks at an image through a CLIP."""

    @cached_property
    def tower(self) -> Tower:
        """The network: loaded on the first call, unless another scorer has it."""
        from diffpo.compat import pick_device

        device = str(pick_device(self.device))
        key = json.dumps([self._spec.record, self.dtype, device], sort_keys=True)
        tower = _towers.get(key)
        if tower is None:
            tower = _towers[key] = self._spec.load(self.dtype, device)
        return tower

    @property
    def _found(self) -> dict[str, Any]:
        return self._spec.record

    @property
    @abstractmethod
    def _spec(self) -> TowerSpec:
        """Weights and preprocessing; remembered."""


@dataclass(frozen=True, kw_only=True)
class CosineScorer(TowerScorer, ABC):
    """A scorer whose number is the cosine between image and prompt, times a factor."""

    scale: str
    """Which factor; see `scaled`. Each scorer says which it allows."""

    def _judge(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        import torch

        tower = self.tower
        image = tower.image_features(images, self.batch)
        text = tower.prompt_features(self._texts(prompts), self.batch)
        return scaled(torch.cosine_similarity(image, text, dim=-1), self.scale, tower.logit_scale)

    def _texts(self, prompts: Sequence[str]) -> Sequence[str]:
        """What is read of the prompts."""
        return prompts


def scaled(cosine: Tensor, scale: str, logit_scale: float) -> Tensor:
    """Bring cosines to a scale.

    Args:
        cosine: `[n]`
        scale: `cosine`: as it is; `percent`: 100 cos; `logit`: exp(logit_scale) cos; `clipscore`: 2.5 max(cos, 0)
            (Hessel et al., arXiv:2104.08718).
        logit_scale: exp of the learned parameter.
    """
    if scale == "clipscore":
        return 2.5 * cosine.clamp(min=0)
    return {"cosine": 1.0, "percent": 100.0, "logit": logit_scale}[scale] * cosine


def _digest(image: Image) -> str:
    return hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16).hexdigest()


def _remembered(
    known: dict[str, Tensor],
    keys: Sequence[str],
    items: Sequence[Any],
    batch: int,
    encode: Callable[[Sequence[Any]], Tensor],
) -> Tensor:
    """Features by key, from `known` or from `encode`; `known` keeps the last ones."""
    import torch

    missing = {key: item for key, item in zip(keys, items, strict=True) if key not in known}
    todo = list(missing)
    for start in range(0, len(todo), batch):
        rows = todo[start : start + batch]
        known.update(zip(rows, encode([missing[key] for key in rows]).float().cpu(), strict=True))
    features = torch.stack([known[key] for key in keys])
    known.update([(key, known.pop(key)) for key in dict.fromkeys(keys)])  # these are the last ones now
    for key in list(known)[: max(0, len(known) - _KEPT)]:
        del known[key]
    return features
