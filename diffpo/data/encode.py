"""Encode a pair: pixels to the moments of the latent posterior, a prompt to text states.

Encoding is a function of one row, and rounds to `cache_dtype` itself, so what is read from the cache and what is
encoded during training are the same bits. The networks come from outside: anything that has the members of `Encoder`
will do.
"""

from __future__ import annotations

import itertools
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from diffpo.data.images import Prepared, choose_target, prepare, target_sizes
from diffpo.disk.ahead import ahead
from diffpo.disk.progress import track
from diffpo.errors import UserError
from diffpo.media.frames import BrokenImage, decode, name_of

if TYPE_CHECKING:
    from PIL import Image

    from diffpo.data.records import Source, Table

log = logging.getLogger(__name__)

BOTH = ("chosen", "rejected")
WORKERS = min(8, os.cpu_count() or 1)


class Encoder(Protocol):
    """What is asked of an encoder; both functions look at one image or prompt alone."""

    @property
    def fingerprint(self) -> str:
        """Identity of the encoder's files."""
        ...

    @property
    def multiple(self) -> int:
        """Image sides in pixels must be divisible by this."""
        ...

    def encode_media(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, each `[c f h w]` float32, of `frames` `[3 f h w]` in [-1, 1]."""
        ...

    def encode_prompt(self, prompt: str) -> dict[str, Tensor]:
        """Return `text` `[n d]`, and if the family has them `pooled` `[d]` and `mask` `[n]`."""
        ...

    def count_cut(self, prompts: Sequence[str]) -> dict[int, int]:
        """Count the prompts that are longer than a text encoder reads: tokens that it reads -> prompts cut there."""
        ...


def encode_row(
    row: dict[str, Any], index: int, encoder: Encoder, source: Source, seed: int, sides: Sequence[str] = BOTH
) -> dict[str, Tensor]:
    """Encode the images of one row.

    Returns:
        Per side `{side}_mean` and `{side}_std` `[c 1 h w]` in `cache_dtype`, and `{side}_size` `[6]` int64 (see
        `images.Prepared`).

    Raises:
        BrokenImage: One of the images cannot be used; then the row must be dropped.
    """
    return encode_prepared(prepare_row(row, index, encoder.multiple, source, seed, sides), encoder, source)


def prepare_row(
    row: dict[str, Any], index: int, multiple: int, source: Source, seed: int, sides: Sequence[str]
) -> dict[str, Prepared]:
    """Do the part of `encode_row` that needs no network: decode, resize, flip, crop.

    Raises:
        BrokenImage: One of the images cannot be used.
    """
    images = decode_row(row, sides)
    first = images[sides[0]]
    target = choose_target(target_sizes(source, multiple), first.height, first.width)
    return {side: prepare(image, target, index, source, seed) for side, image in images.items()}


def decode_row(row: dict[str, Any], sides: Sequence[str]) -> dict[str, Image.Image]:
    """Decode the images of one row.

    Raises:
        BrokenImage: One of them cannot be decoded.
    """
    images = {}
    for side in sides:
        try:
            images[side] = decode(row[side])
        except BrokenImage as error:
            raise BrokenImage(f"{side} image {name_of(row[side])}: {error}") from error
    return images


def encode_prepared(prepared: dict[str, Prepared], encoder: Encoder, source: Source) -> dict[str, Tensor]:
    """Do the part of `encode_row` that needs the network."""
    tensors = {}
    for side, image in prepared.items():
        mean, std = encoder.encode_media(image.pixels.unsqueeze(1))
        tensors[f"{side}_mean"] = _round(mean, source.cache_dtype, f"a {side} image")
        tensors[f"{side}_std"] = _round(std, source.cache_dtype, f"a {side} image")
        tensors[f"{side}_size"] = image.size
    return tensors


def encode_text(prompt: str, encoder: Encoder, source: Source) -> dict[str, Tensor]:
    """Encode a prompt: the encoder's states, floating ones in `cache_dtype`."""
    states = encoder.encode_prompt(prompt)
    return {name: _round(x, source.cache_dtype, f"the prompt {prompt[:60]!r}") for name, x in states.items()}


def different_captions(table: Table, sides: Sequence[str]) -> list[str]:
    """Every caption of a table's sides once, in the order of the rows."""
    return list(dict.fromkeys(itertools.chain.from_iterable(table.captions(side) for side in sides)))


def log_cut_captions(prompts: Sequence[str], encoder: Encoder, path: str) -> None:
    """Warn of captions of the table at `path` whose end no text encoder, or not every one, will see."""
    for limit, count in sorted(encoder.count_cut(prompts).items() if prompts else ()):
        if count:
            log.warning(
                f"{path}: {count} of {len(prompts)} different captions are longer than the {limit} tokens that a text "
                "encoder reads, and are cut there."
            )


def _round(x: Tensor, dtype: str, what: str) -> Tensor:
    if not x.is_floating_point():
        return x.cpu()
    rounded = x.to("cpu", getattr(torch, dtype))
    if not rounded.isfinite().all():
        advice = "Set data.cache_dtype=float32" if x.isfinite().all() else "Run the encoders in float32"
        raise UserError(f"Encoding {what} gives numbers that are not finite in {dtype}. {advice}.")
    return rounded


class Encodings(ABC):
    """The encodings of a table's rows and prompts, wherever they come from."""

    read_ahead: ClassVar[int]
    """How many updates a background thread may prepare."""
    broken: dict[int, str]
    """Rows that cannot be used, and why."""
    targets: np.ndarray
    """`[n 2]` height and width in pixels that each row's images were brought to."""

    @abstractmethod
    def images(self, index: int) -> dict[str, Tensor]:
        """Return what `encode_row` gives for a row."""

    @abstractmethod
    def text(self, prompt: str) -> dict[str, Tensor]:
        """Return what `encode_text` gives for a prompt."""


class LiveEncodings(Encodings):
    """Encode whenever asked (`cache: false`).

    Every image is decoded once at the start: which rows are broken must be known before the plan is made.
    """

    read_ahead = (
        0  # networks run where the training runs: another thread may use other numbers of threads, and give other bits
    )

    def __init__(
        self, table: Table, source: Source, encoder: Encoder, *, seed: int, sides: Sequence[str] = BOTH, rank: int = 0
    ):
        """Check every image; only rank 0 shows the progress."""
        self._source, self._encoder, self._seed, self._sides = source, encoder, seed, tuple(sides)
        self._rows = table.rows.select_columns(list(sides))
        self._text = lru_cache(maxsize=1024)(partial(encode_text, encoder=encoder, source=source))
        if rank == 0:
            log_cut_captions(different_captions(table, self._sides), encoder, table.path)
        self.broken = {}
        self.targets = np.zeros((len(table), 2), np.int64)
        checked = ahead(self._check, range(len(table)), workers=WORKERS, depth=4 * WORKERS)
        for index, found in enumerate(track(checked, "Checking images", len(table), shown=rank == 0)):
            if isinstance(found, BrokenImage):
                self.broken[index] = str(found)
            else:
                self.targets[index] = found

    def _check(self, index: int) -> tuple[int, int] | BrokenImage:
        try:
            first = decode_row(self._rows[index], self._sides)[self._sides[0]]
        except BrokenImage as error:
            return error
        return choose_target(target_sizes(self._source, self._encoder.multiple), first.height, first.width)

    def images(self, index: int) -> dict[str, Tensor]:
        """Encode a row's images."""
        return encode_row(self._rows[index], index, self._encoder, self._source, self._seed, self._sides)

    def text(self, prompt: str) -> dict[str, Tensor]:
        """Encode a prompt; the most recent ones are remembered."""
        return self._text(prompt)
