"""Numbers of each image of a folder, kept in FOLDER/features/ by what the image's file holds and what made them.

clip        a CLIP's image embedding; CLIP-FID's is OpenAI's ViT-B/32         Kynkaanniemi et al., arXiv:2203.06026
inception   FID's: the pooled layer of the Inception of 2015, resized as clean-fid does     Parmar et al., 2104.11222
looks       saturation, contrast, size as JPEG: no network
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from diffpo.compat import pick_device
from diffpo.core.block import Block, Count
from diffpo.disk.ahead import chunks
from diffpo.disk.files import write_file
from diffpo.disk.progress import progress
from diffpo.disk.weights import Weights
from diffpo.errors import UserError
from diffpo.media.folder import decode_file
from diffpo.media.frames import read_bytes
from diffpo.scorers.clip import Clip
from diffpo.scorers.parts import find_file

if TYPE_CHECKING:
    from PIL.Image import Image

INCEPTION = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
LOOKS = ("saturation", "contrast", "jpeg bytes per pixel")
"""What `Looks` measures: mean S of HSV; standard deviation of the luminance (both of 1); of quality 90."""
_SIDE = 299
_QUALITY = 90
_CHUNK = 32
_SAVE_SECONDS = 20.0
_log = logging.getLogger(__name__)


class Features(Protocol):
    """Turns images into numbers."""

    name: ClassVar[str]

    @property
    def provenance(self) -> dict[str, Any]:
        """What decides the numbers; known without loading weights."""
        ...

    def features(self, images: Sequence[Image]) -> NDArray[np.float32]:
        """Numbers of RGB images: `[n d]`."""
        ...


@dataclass(frozen=True, kw_only=True)
class ClipFeatures(Block):
    """Embeddings of images by a CLIP, not normalised."""

    name: ClassVar[str] = "clip"

    model: str = "openai/clip-vit-base-patch32"
    """As the scorer `clip` takes it; the default is CLIP-FID's."""
    architecture: str | None = None
    """As there."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, ..."""
    batch: Count = 32
    """Images at a time."""

    @property
    def provenance(self) -> dict[str, Any]:
        """What decides the numbers."""
        record = self._clip.provenance
        return {"features": self.name, **{k: v for k, v in record.items() if k not in ("scorer", "about", "scale")}}

    def features(self, images: Sequence[Image]) -> NDArray[np.float32]:
        """Embeddings `[n d]`. See `Features.features`."""
        import torch

        with torch.no_grad():
            return self._clip.tower.image_features(images, self.batch).numpy()

    @cached_property
    def _clip(self) -> Clip:
        return Clip(model=self.model, architecture=self.architecture, device=self.device, batch=self.batch)


@dataclass(frozen=True, kw_only=True)
class Inception(Block):
    """FID's own features `[n 2048]`: TorchScript that NVIDIA converted from the TensorFlow network of 2015.

    torchvision's Inception was trained anew and gives other numbers; FIDs of it are not comparable with any paper's.
    """

    name: ClassVar[str] = "inception"

    path: str = INCEPTION
    """A local file, or an address."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, ..."""
    batch: Count = 32
    """Images at a time."""

    @property
    def provenance(self) -> dict[str, Any]:
        """What decides the numbers."""
        return {"features": self.name, "weights": self._weights.identity, "preprocessing": "clean-fid: PIL, bicubic"}

    def features(self, images: Sequence[Image]) -> NDArray[np.float32]:
        """Pooled features `[n 2048]`. See `Features.features`."""
        import torch

        device, found = pick_device(self.device), []
        with torch.no_grad():
            for rows in chunks(list(images), self.batch):
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
            network = torch.jit.load(str(self._weights.path), map_location=pick_device(self.device)).eval()
            return network.layers
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
        """What decides the numbers."""
        return {"features": self.name, "measured": list(LOOKS), "quality": _QUALITY}

    def features(self, images: Sequence[Image]) -> NDArray[np.float32]:
        """The three numbers of each image. See `Features.features`."""
        return np.array([_looks(image) for image in images], dtype=np.float32)


def folder_features(folder: Path, files: Sequence[str], makers: Sequence[Features]) -> dict[str, NDArray[np.float32]]:
    """Numbers of a folder's images, by name of the maker: `[files d]`. What was made before is not made again.

    Args:
        folder: Where the files are.
        files: Their paths within it.
        makers: Of different names. Each image is decoded once for all of them.

    Raises:
        UserError: If a file is missing or no image, weights cannot be found, or a number is none.
    """
    stores = [_Store(folder, maker) for maker in makers]
    digests: list[str] = []
    saved = time.monotonic()
    with progress(f"Features of {folder.name}", len(files)) as advance:
        for rows in chunks(list(files), _CHUNK):
            data = [_read(folder / file) for file in rows]
            keys = [hashlib.blake2b(content, digest_size=16).hexdigest() for content in data]
            missing = [i for i, key in enumerate(keys) if any(key not in store.known for store in stores)]
            images = {i: decode_file(data[i], folder / rows[i]) for i in missing}
            for store in stores:
                store.add({keys[i]: image for i, image in images.items()})
            digests += keys
            advance(len(rows))
            if time.monotonic() - saved > _SAVE_SECONDS:
                for store in stores:
                    store.save()
                saved = time.monotonic()
    for store in stores:
        store.save()
    return {store.maker.name: np.stack([store.known[key] for key in digests]) for store in stores}


class _Store:
    """What one maker made of a folder's images, by the digest of their files."""

    def __init__(self, folder: Path, maker: Features):
        digest = hashlib.blake2b(json.dumps(maker.provenance, sort_keys=True).encode(), digest_size=8).hexdigest()
        self.maker, self.path, self.new = maker, folder / "features" / f"{maker.name}-{digest}.npz", False
        self.known: dict[str, NDArray[np.float32]] = {}
        if self.path.is_file():
            try:
                with np.load(self.path, allow_pickle=False) as content:
                    self.known = dict(zip(content["digests"].tolist(), content["values"], strict=True))
            except (OSError, ValueError, KeyError) as error:
                raise UserError(f"{self.path} is damaged ({error}). Delete it.") from error

    def add(self, images: dict[str, Image]) -> None:
        """Make what is missing."""
        todo = {key: image for key, image in images.items() if key not in self.known}
        if not todo:
            return
        values = self.maker.features(list(todo.values()))
        if not np.isfinite(values).all():
            raise UserError(f"{self.maker.name} gave numbers that are none. Its weights may be damaged.")
        self.known.update(zip(todo, values, strict=True))
        self.new = True

    def save(self) -> None:
        """Write all, atomically; a folder that cannot be written to is no reason to stop."""
        if not self.new:
            return
        buffer = io.BytesIO()
        np.savez(buffer, digests=np.array(list(self.known)), values=np.stack(list(self.known.values())))
        try:
            self.path.parent.mkdir(exist_ok=True)
            write_file(self.path, buffer.getvalue())
        except OSError as error:
            _log.warning("%s cannot be written (%s): features will be made again", self.path, error.strerror)
        self.new = False


def resized(image: Image) -> NDArray[np.float32]:
    """An image at Inception's size, `[3 299 299]` from 0 to 255: each channel as floats, not rounded again."""
    from PIL import Image as Images

    channels = [
        channel.convert("F").resize((_SIDE, _SIDE), Images.Resampling.BICUBIC)
        for channel in image.convert("RGB").split()
    ]
    return np.stack([np.asarray(channel) for channel in channels]).clip(0, 255)


def _looks(image: Image) -> list[float]:
    image = image.convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    saturation = np.asarray(image.convert("HSV"))[..., 1].mean() / 255
    contrast = np.asarray(image.convert("L"), dtype=np.float64).std() / 255
    return [float(saturation), float(contrast), len(buffer.getvalue()) / (image.width * image.height)]


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
