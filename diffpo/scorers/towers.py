"""What scorers of CLIP type share: a network that turns images and prompts into features, and the arithmetic after it.

Scorers whose features are made alike (the same weights, preprocessing, dtype, device) share one `Tower` for as long as
one of them lives. It remembers the last images by their content, so that several scorers of one call run it once.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from diffpo.compat import pick_device
from diffpo.disk.ahead import WORKERS, ahead, groups
from diffpo.scorers.base import NetworkScorer, plain

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Prepare = Callable[[Sequence[Any]], "Tensor"]
"""Turns RGB images into what the network takes of them, `[b 3 h w]` on the CPU; several threads call it at once."""
Encode = Callable[[Any], "Tensor"]
"""Turns what was prepared, or a list of prompts, into features `[b d]`, in the network's own dtype and place."""
_KEPT, _PREPARED = 1024, 8
"""Features that are remembered; images that a thread prepares at a time."""
_towers: WeakValueDictionary[str, Tower] = WeakValueDictionary()


class Tower:
    """A CLIP in memory. Features are `[n d]` float32 on the CPU, not normalised; the last ones are remembered."""

    def __init__(self, network: Any, prepare: Prepare, encode_images: Encode, encode_prompts: Encode):
        self.network, self._prepare = network, prepare
        self._encode_images, self._encode_prompts = encode_images, encode_prompts
        self._images: dict[str, Tensor] = {}
        self._prompts: dict[str, Tensor] = {}

    @property
    def logit_scale(self) -> float:
        """The learned factor of the cosine: exp of a CLIP's parameter, one divided by an ALIGN's temperature."""
        own = dict(self.network.named_parameters())
        return (own["logit_scale"].float().exp() if "logit_scale" in own else 1 / own["temperature"].float()).item()

    def image_features(self, images: Sequence[Image], batch: int) -> Tensor:
        """Features of images."""
        rgb = [plain(image) for image in images]
        return _remembered(self._images, [pixels_of(x) for x in rgb], rgb, partial(self._image_batches, batch=batch))

    def prompt_features(self, prompts: Sequence[str], batch: int) -> Tensor:
        """Features of prompts."""
        return _remembered(self._prompts, prompts, prompts, lambda new: map(self._encode_prompts, groups(new, batch)))

    def _image_batches(self, images: Sequence[Image], batch: int) -> Iterator[Tensor]:
        """Features of images, batch after batch: threads prepare the next one while the network looks at one."""
        import torch

        parts = [part for rows in groups(images, batch) for part in groups(rows, _PREPARED)]
        prepared = ahead(self._prepare, parts, workers=WORKERS, depth=2 * max(WORKERS, batch // _PREPARED))
        for rows in groups(range(len(images)), batch):
            pixels = [next(prepared) for _ in groups(rows, _PREPARED)]
            yield self._encode_images(torch.cat(pixels))


@dataclass(frozen=True)
class TowerSpec:
    """Which tower: its weights and preprocessing, found but not loaded."""

    record: dict[str, Any]
    """All that decides the features beside dtype and device, for a scorer's provenance."""
    load: Callable[[str, str], Tower]
    """Loads the network in a dtype, on a device; raises `UserError` if the weights are of the wrong kind."""


@dataclass(frozen=True, kw_only=True)
class TowerScorer(NetworkScorer, ABC):
    """A scorer that looks at an image through a CLIP."""

    @cached_property
    def tower(self) -> Tower:
        """The network: loaded on the first call, unless another scorer has it."""
        device = pick_device(self.device)
        key = json.dumps([self._spec.record, self.dtype, device], sort_keys=True)
        return _towers.get(key) or _towers.setdefault(key, self._spec.load(self.dtype, device))

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
    """`cosine`: as it is; `percent`: 100 cos; `logit`: exp(logit_scale) cos; `clipscore`: 2.5 max(cos, 0) (Hessel et
    al., arXiv:2104.08718). Each scorer says which it allows."""

    def _judge(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        import torch

        image = self.tower.image_features(images, self.batch)
        text = self.tower.prompt_features(prompts, self.batch)
        cosine = torch.cosine_similarity(image, text, dim=-1)
        if self.scale == "clipscore":
            return 2.5 * cosine.clamp(min=0)
        return {"cosine": 1.0, "percent": 100.0, "logit": self.tower.logit_scale}[self.scale] * cosine


def pixels_of(rgb: Image) -> str:
    """Hash the size and the pixels of an RGB image."""
    return hashlib.blake2b(f"{rgb.size}".encode() + rgb.tobytes(), digest_size=16).hexdigest()


def _remembered(
    known: dict[str, Tensor],
    keys: Sequence[str],
    items: Sequence[Any],
    encode: Callable[[Sequence[Any]], Iterable[Tensor]],
) -> Tensor:
    """Features by key, from `known` or, batch after batch, from `encode`; `known` keeps the last ones."""
    import torch

    missing = {key: item for key, item in zip(keys, items, strict=True) if key not in known}
    made = (row for features in encode([*missing.values()]) for row in features.float().cpu())
    known.update(zip(missing, made, strict=True))
    features = torch.stack([known[key] for key in keys])
    known.update([(key, known.pop(key)) for key in dict.fromkeys(keys)])  # these are the last ones now
    for key in list(known)[: max(0, len(known) - _KEPT)]:
        del known[key]
    return features
