"""Encode a pair: frames to the moments of the latent posterior, a prompt to text states.

Encoding is a function of one row, and rounds to `cache_dtype` itself, so what is read from the cache and what is
encoded during training are the same bits. The networks come from outside: anything that has the members of `Encoder`
will do.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from diffpo.data.contents import Contents, read_contents
from diffpo.data.images import Preparation, Prepared
from diffpo.data.latents import find_latents
from diffpo.data.lengths import describe_broken_image, read_lengths
from diffpo.disk.ahead import WORKERS, ahead
from diffpo.disk.progress import track
from diffpo.errors import UserError
from diffpo.media.footage import FrameRule
from diffpo.media.frames import BrokenImage

if TYPE_CHECKING:
    from diffpo.data.records import Source, Table

log = logging.getLogger(__name__)

BOTH = ("chosen", "rejected")


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

    @property
    def rule(self) -> FrameRule:
        """Which clips it takes."""
        ...

    @property
    def vae_fingerprint(self) -> str:
        """Identity of the files of the VAE alone, which made the latents that lie beside clips."""
        ...

    def encode_media(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, each `[c f h w]` float32, of `frames` `[3 f h w]` uint8."""
        ...

    def encode_prompt(self, prompt: str) -> dict[str, Tensor]:
        """Return `text` `[n d]`, and if the family has them `pooled` `[d]` and `mask` `[n]`."""
        ...

    @property
    def usual_batch(self) -> int:
        """How many images or prompts it takes together unless told: 1 where it is no faster with more."""
        ...

    def start_media(self, frames: Sequence[Tensor]) -> Callable[[], list[tuple[Tensor, Tensor]]]:
        """Begin to encode several of one shape together; what comes out waits for them (see `encode_media`)."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Encode several prompts together (see `encode_prompt`)."""
        ...

    def count_cut(self, prompts: Sequence[str]) -> dict[int, int]:
        """Count the prompts that are longer than a text encoder reads: tokens that it reads -> prompts cut there."""
        ...


def encode_frames(prepared: Prepared, encoder: Encoder, source: Source) -> dict[str, Tensor]:
    """Encode one image or clip.

    Returns:
        `mean` and `std` `[c f h w]` in `cache_dtype`, and `size` `[6]` int64 (see `images.Prepared`). Of a clip there
        is no `std`: its latents are the posterior's mode, or what it was decoded from.
    """
    if prepared.latent is not None:
        return {"mean": _round(prepared.latent, source.cache_dtype, "a clip's latents"), "size": prepared.size}
    return moments(prepared, *encoder.encode_media(prepared.frames), source)


def moments(prepared: Prepared, mean: Tensor, std: Tensor, source: Source) -> dict[str, Tensor]:
    """What `encode_frames` returns, of what the encoder gave."""
    both = {"mean": mean} if len(prepared.pixels) > 1 else {"mean": mean, "std": std}
    return {name: _round(x, source.cache_dtype, "an image") for name, x in both.items()} | {"size": prepared.size}


def find_all_latents(table: Table, contents: Mapping[str, Contents], encoder: Encoder) -> dict[str, dict[int, Path]]:
    """Find the latents that lie beside clips, by side and row; a model of images has none."""
    if encoder.rule.most == 1:
        return {}
    return {side: find_latents(table, side, found, encoder.vae_fingerprint) for side, found in contents.items()}


def encode_text(prompt: str, encoder: Encoder, source: Source) -> dict[str, Tensor]:
    """Encode a prompt: the encoder's states, floating ones in `cache_dtype`."""
    return as_text(prompt, encoder.encode_prompt(prompt), source)


def as_text(prompt: str, states: Mapping[str, Tensor], source: Source) -> dict[str, Tensor]:
    """What `encode_text` returns, of what the encoder gave."""
    return {name: _round(x, source.cache_dtype, f"the prompt {prompt[:60]!r}") for name, x in states.items()}


def has_captions(table: Table, sides: Sequence[str]) -> bool:
    """Whether images of a table have captions of their own."""
    return any(f"{side}_prompt" in table.rows.column_names for side in sides)


def log_cut_captions(cut: dict[int, int], captions: int, path: str) -> None:
    """Warn of captions of the table at `path` whose end no text encoder, or not every one, will see.

    Args:
        cut: Captions that are cut, by the number of tokens after which they are.
        captions: Different ones in all.
        path: Of the table.
    """
    for limit, count in sorted(cut.items()):
        if count:
            log.warning(
                f"{path}: {count} of {captions} different captions are longer than the {limit} tokens that a text "
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
    """How many updates a background thread may prepare, if they are small."""
    contents: dict[str, np.ndarray]
    """Per side, `[n]` hashes of the images' bytes."""
    broken: dict[int, str]
    """Rows that cannot be used, and why."""
    targets: np.ndarray
    """`[n 3]` frames, and the height and width in pixels that each row's images are brought to."""
    fps: float | None
    """Frames per second of clips; None: there are images alone."""

    @abstractmethod
    def images(self, index: int) -> dict[str, Tensor]:
        """Return what `encode_frames` gives for both sides of a row: `{side}_mean`, ..."""

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
        self._source, self._encoder, self._sides = source, encoder, tuple(sides)
        self._rows = table.rows.select_columns(list(sides))
        self._text = lru_cache(maxsize=1024)(partial(encode_text, encoder=encoder, source=source))
        if rank == 0:
            captions = {text for side in sides for part in table.in_parts(table.captions, side) for text in part}
            log_cut_captions(encoder.count_cut(sorted(captions)), len(captions), table.path)
        contents = {side: read_contents(table, side, shown=rank == 0) for side in sides}
        lengths = read_lengths(table, source, encoder.rule, contents, shown=rank == 0)
        latents = find_all_latents(table, contents, encoder)
        self._preparation = Preparation(source, encoder.multiple, encoder.rule, seed, self._sides, lengths, latents)
        self.contents = {side: each.keys for side, each in contents.items()}
        self.broken, self.fps = dict(lengths.dropped), lengths.fps
        self.targets = np.zeros((len(table), 3), np.int32)
        rows = [row for row in range(len(table)) if row not in self.broken]
        checked = ahead(self._check, rows, workers=WORKERS, depth=4 * WORKERS)
        for index, found in zip(rows, track(checked, "Checking images", len(rows), shown=rank == 0), strict=True):
            if isinstance(found, BrokenImage):
                self.broken[index] = str(found)
            else:
                self.targets[index] = found
        self.broken = dict(sorted(self.broken.items()))

    def _check(self, index: int) -> tuple[int, ...] | BrokenImage:
        """Decode what a row has: its frames, height and width."""
        target, row = (), self._rows[index]
        for side in self._sides:
            try:
                target = self._preparation.prepare(row, index, side).pixels.shape[:3]
            except BrokenImage as error:
                return BrokenImage(describe_broken_image(side, row[side], error))
        return target

    def images(self, index: int) -> dict[str, Tensor]:
        row, tensors = self._rows[index], {}
        for side in self._sides:
            prepared = self._preparation.prepare(row, index, side)
            encoded = encode_frames(prepared, self._encoder, self._source)
            tensors |= {f"{side}_{name}": x for name, x in encoded.items()}
        return tensors

    def text(self, prompt: str) -> dict[str, Tensor]:
        return self._text(prompt)
