"""How alike the frames of a clip are to a network of images: two of VBench's dimensions (arXiv:2311.17982).

    score = mean over the frames but the first of (max(0, cos to the frame before) + max(0, cos to the first)) / 2

    subject-consistency       class token of DINO ViT-B/16; short side 224, bilinear, nothing cut off
    background-consistency    image features of CLIP ViT-B/32; short side 224, bicubic, middle cut out

Frames are resized as tensors of bytes, without antialiasing, as VBench does. Networks are those of transformers, with
the weights that VBench uses; where frames are not square, transformers interpolates DINO's positions in another way in
the last digits. Checked on small random weights only. A clip that stands still scores 1.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from diffpo.core.block import Count
from diffpo.disk.ahead import groups
from diffpo.disk.weights import Weights
from diffpo.scorers.base import ClipScorer, WithNetwork, plain, versions
from diffpo.scorers.loading import CLIP, Kind, load_network
from diffpo.scorers.parts import find_model

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from diffpo.media.frames import Clip

DINO, CLIP_B = "facebook/dino-vitb16", "openai/clip-vit-base-patch32"
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and spread of the pixels, by channel


@dataclass(frozen=True, kw_only=True)
class _Consistency(ClipScorer, WithNetwork):
    scale = "mean of cosines, 0 to 1"
    kind: ClassVar[Kind]
    what: ClassVar[str]
    preprocessing: ClassVar[str]

    path: str
    """Hub id or local folder of transformers."""

    @cached_property
    def _weights(self) -> Weights:
        return find_model(self.path, what=self.what)

    @property
    def _found(self) -> dict[str, Any]:
        library = versions("transformers", "pillow")
        return {"weights": self._weights.identity, "preprocessing": self.preprocessing, "library": library}

    @cached_property
    def _network(self) -> Any:
        return load_network(self._weights.path, self.kind, self.what, dtype=self.dtype, device=self.device)

    def _judge_clip(self, clip: Clip, prompt: str) -> float:
        import torch

        seen = []
        for frames in groups(clip.frames, self.batch):
            pixels = torch.stack([self._pixels(plain(frame)) for frame in frames])
            seen.append(self._features(pixels.to(self._network.device, self._network.dtype)).float().cpu())
        return consistency(torch.cat(seen))

    @abstractmethod
    def _pixels(self, frame: Image) -> Tensor:
        """What the network reads of a frame: `[3 h w]` float32, normalised."""

    @abstractmethod
    def _features(self, pixels: Tensor) -> Tensor:
        """`[b 3 h w]` to `[b d]`."""


@dataclass(frozen=True, kw_only=True)
class SubjectConsistency(_Consistency):
    """Whether what a clip shows stays the same thing, by DINO."""

    name = "subject-consistency"
    origin = f"Hub {DINO}"
    about = "VBench's subject consistency: how alike frames look to DINO. A clip that stands still is the best."
    kind = Kind("AutoModel", "vit", spare=("pooler.",))  # DINO is published without it
    what = "a DINO ViT-B/16 of transformers"
    preprocessing = "bytes, short side 224, bilinear without antialiasing"

    path: str = DINO
    batch: Count = 32
    """Frames at a time."""

    def _pixels(self, frame: Image) -> Tensor:
        return _normalised(resize_bytes(frame, 224, "bilinear"), *_IMAGENET)

    def _features(self, pixels: Tensor) -> Tensor:
        return self._network(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]


@dataclass(frozen=True, kw_only=True)
class BackgroundConsistency(_Consistency):
    """Whether the scene of a clip stays the same, by CLIP."""

    name = "background-consistency"
    origin = f"Hub {CLIP_B}"
    about = "VBench's background consistency: how alike frames look to CLIP. A clip that stands still is the best."
    kind = CLIP
    what = "a CLIP ViT-B/32 of transformers"
    preprocessing = "bytes, short side by the network, bicubic without antialiasing, middle"

    path: str = CLIP_B

    def _pixels(self, frame: Image) -> Tensor:
        from diffpo.scorers.pixels import MEAN, STD

        side = self._network.config.vision_config.image_size
        resized = resize_bytes(frame, side, "bicubic")
        top, left = (round((length - side) / 2) for length in resized.shape[1:])
        return _normalised(resized[:, top : top + side, left : left + side], MEAN, STD)

    def _features(self, pixels: Tensor) -> Tensor:
        return self._network.get_image_features(pixel_values=pixels).pooler_output


def consistency(features: Tensor) -> float:
    """VBench's mean of cosines over frames; `features` is `[frames d]`, of two frames at least."""
    import torch

    before = torch.cosine_similarity(features[1:], features[:-1], dim=-1).clamp(min=0)
    first = torch.cosine_similarity(features[1:], features[:1], dim=-1).clamp(min=0)
    return ((before + first) / 2).mean().item()


def resize_bytes(frame: Image, short: int, mode: str) -> Tensor:
    """Resize an RGB image as torchvision resizes a tensor of bytes without antialiasing: `[3 h w]`, whole numbers.

    The short side becomes `short`, the long one is rounded down.
    """
    import numpy as np
    import torch
    from torch.nn import functional

    pixels = torch.from_numpy(np.array(frame)).permute(2, 0, 1).float()
    least = min(pixels.shape[1:])
    size = [int(short * length / least) for length in pixels.shape[1:]]
    resized = functional.interpolate(pixels[None], size, mode=mode, align_corners=False, antialias=False)[0]
    return resized.round().clamp(0, 255)


def _normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    centre, spread = (pixels.new_tensor(values)[:, None, None] for values in (mean, std))
    return (pixels / 255 - centre) / spread
