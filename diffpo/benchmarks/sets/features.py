"""Numbers of each image of a folder, kept in the cache by what the image's file holds and what made them.

clip        a CLIP's image embedding; CLIP-FID's is OpenAI's ViT-B/32         Kynkaanniemi et al., arXiv:2203.06026
inception   FID's: the pooled layer of the Inception of 2015, resized as clean-fid does     Parmar et al., 2104.11222
looks       saturation, contrast, size as JPEG: no network
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image, Resampling

from diffpo.compat import pick_device
from diffpo.core.block import Block, Count
from diffpo.disk.ahead import groups
from diffpo.disk.rows import Row, RowStore
from diffpo.disk.weights import Weights
from diffpo.errors import UserError
from diffpo.media.folder import Media
from diffpo.media.frames import Clip
from diffpo.scorers.base import OnDevice
from diffpo.scorers.clip import Clip as ClipScorer
from diffpo.scorers.judging import Judge, judge_media
from diffpo.scorers.parts import find_file

INCEPTION = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
LOOKS = ("saturation", "contrast", "jpeg bytes per pixel")
"""What `Looks` measures: mean S of HSV; standard deviation of the luminance (both of 1); of quality 90."""
_SIDE = 299
_QUALITY = 90


class Features(Protocol):
    """Turns RGB images into numbers, `[n d]`; `provenance`, known without loading weights, says what decides them."""

    name: ClassVar[str]

    @property
    def provenance(self) -> dict[str, Any]: ...

    def features(self, images: Sequence[Image]) -> NDArray[np.float32]: ...


@dataclass(frozen=True, kw_only=True)
class ClipFeatures(OnDevice):
    """Embeddings of images by a CLIP, not normalised."""

    name: ClassVar[str] = "clip"

    model: str = "openai/clip-vit-base-patch32"
    """As the scorer `clip` takes it; the default is CLIP-FID's."""
    architecture: str | None = None
    """As there."""
    batch: Count = 32
    """Images at a time."""

    @property
    def provenance(self) -> dict[str, Any]:
        record = self._clip.provenance
        return {"features": self.name, **{k: v for k, v in record.items() if k not in ("scorer", "about", "scale")}}

    def features(self, images: Sequence[Image]) -> NDArray[np.float32]:
        import torch

        with torch.no_grad():
            return self._clip.tower.image_features(images, self.batch).numpy()

    @cached_property
    def _clip(self) -> ClipScorer:
        return ClipScorer(model=self.model, architecture=self.architecture, device=self.device, batch=self.batch)


@dataclass(frozen=True, kw_only=True)
class Inception(OnDevice):
    """FID's own features `[n 2048]`: TorchScript that NVIDIA converted from the TensorFlow network of 2015.

    torchvision's Inception was trained anew and gives other numbers; FIDs of it are not comparable with any paper's.
    torch-fidelity 0.4 has this network, but unpickles its weights unguarded and takes whole bytes only, where the
    resize of clean-fid leaves fractions.
    """

    name: ClassVar[str] = "inception"

    path: str = INCEPTION
    """A local file, or an address."""
    batch: Count = 32
    """Images at a time."""

    @property
    def provenance(self) -> dict[str, Any]:
        return {"features": self.name, "weights": self._weights.identity, "preprocessing": "clean-fid: PIL, bicubic"}

    def features(self, images: Sequence[Image]) -> NDArray[np.float32]:
        import torch

        device, found = pick_device(self.device), []
        with torch.no_grad():
            for rows in groups(images, self.batch):
                pixels = torch.from_numpy(np.stack([resized(image) for image in rows])).to(device)
                found.append(self._layers((pixels - 128) / 128).flatten(1).float().cpu())
        return torch.cat(found).numpy()

    @cached_property
    def _weights(self) -> Weights:
        return find_file(self.path, file="inception-2015-12-05.pt", what="FID's Inception (TorchScript)")

    @cached_property
    def _layers(self) -> Any:
        import torch

        try:
            return torch.jit.load(str(self._weights.path), map_location=pick_device(self.device)).eval().layers
        except (RuntimeError, AttributeError) as error:
            raise UserError(
                f"{self._weights.path} is no TorchScript of FID's Inception: {str(error).splitlines()[0]}"
            ) from error


@dataclass(frozen=True, kw_only=True)
class Looks(Block):
    """What rewards are hacked with: `LOOKS` of each image, `[n 3]`."""

    name: ClassVar[str] = "looks"

    @property
    def provenance(self) -> dict[str, Any]:
        return {"features": self.name, "measured": list(LOOKS), "quality": _QUALITY}

    def features(self, images: Sequence[Image]) -> NDArray[np.float32]:
        return np.array([_looks(image) for image in images], dtype=np.float32)


def folder_features(folder: Path, media: Sequence[Media], makers: Sequence[Features]) -> dict[str, NDArray[np.float32]]:
    """Make numbers of a folder's images, by name of the maker: `[n d]`; a clip has the mean over its frames.

    Each image is decoded once for all makers. What was made before is not made again.
    """
    judges = {
        maker.name: Judge(RowStore("features", maker.provenance), partial(_look, maker), lambda item: "")
        for maker in makers
    }
    found = judge_media(folder, media, list(judges.values()), f"Features of {folder.name}")
    if found.left_out:
        raise UserError(next(iter(found.left_out.values())))
    return {
        name: np.stack([judge[judge.key(found.contents[m.file], m)].tensors["features"].numpy() for m in media])
        for name, judge in judges.items()
    }


def _look(maker: Features, clips: Sequence[Clip], media: Sequence[Media]) -> Iterator[Row]:
    import torch

    values = maker.features([frame for clip in clips for frame in clip.frames])
    if not np.isfinite(values).all():
        raise UserError(f"{maker.name} gave numbers that are none. Its weights may be damaged.")
    for part in torch.from_numpy(values).split([len(clip.frames) for clip in clips]):
        yield Row(tensors={"features": part.mean(0)})


def resized(image: Image) -> NDArray[np.float32]:
    """An image at Inception's size, `[3 299 299]` from 0 to 255: each channel as floats, not rounded again."""
    size, channels = (_SIDE, _SIDE), image.convert("RGB").split()
    return np.stack([channel.convert("F").resize(size, Resampling.BICUBIC) for channel in channels]).clip(0, 255)


def _looks(image: Image) -> list[float]:
    image = image.convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    saturation = np.asarray(image.convert("HSV"))[..., 1].mean() / 255
    contrast = np.asarray(image.convert("L"), dtype=np.float64).std() / 255
    return [float(saturation), float(contrast), len(buffer.getvalue()) / (image.width * image.height)]
