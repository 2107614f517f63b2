"""Encodings on disk: written once, in shards, by any number of processes; read through memory-mapped Arrow.

A cache is a folder whose name is a hash of everything that its content depends on (`EncodingCache.key`), so a changed
setting cannot read a stale one. It holds shards of images (one entry per row of the table, broken rows with the reason)
and of prompts (one entry per different prompt, and the empty one). A shard is written under a temporary name, synced,
and renamed: it is there completely or not at all. So a run that was killed loses at most the shard that it was writing,
and the same call continues; the finished files do not depend on the interruption.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from diffpo.data.encode import (
    BOTH,
    WORKERS,
    Encoder,
    Encodings,
    LiveEncodings,
    different_captions,
    encode_prepared,
    encode_row,
    encode_text,
    log_cut_captions,
    prepare_row,
)
from diffpo.data.images import Prepared, target_sizes
from diffpo.disk.ahead import ahead
from diffpo.disk.files import write_file
from diffpo.disk.progress import track
from diffpo.disk.shards import Shard, cut, entry_tensors, make_entry, read_shards, write_entries
from diffpo.errors import UserError
from diffpo.media.frames import BrokenImage

if TYPE_CHECKING:
    from datasets import Dataset

    from diffpo.data.records import Source, Table

__all__ = ["CachedEncodings", "Encoder", "EncodingCache", "Encodings", "LiveEncodings", "encode_row", "encode_text"]

FORMAT = 1
"""Raise it when the meaning of a shard's content changes."""


def default_cache_dir() -> Path:
    """$DIFFPO_CACHE, or ~/.cache/diffpo."""
    return Path(os.environ.get("DIFFPO_CACHE") or "~/.cache/diffpo").expanduser()


class EncodingCache:
    """The cache of one table under one set of settings."""

    def __init__(self, table: Table, source: Source, encoder: Encoder, *, seed: int, sides: Sequence[str] = BOTH):
        """Find the cache's place; nothing is encoded, read or written.

        Args:
            table: The pairs.
            source: How images are prepared; `cache_dir` and `cache_dtype`.
            encoder: Identity of the networks, and the networks.
            seed: What flips and random crops depend on.
            sides: Sides that the method uses; the other one is neither decoded nor encoded.

        Raises:
            UserError: The encoder cannot take the resolution.
        """
        target_sizes(source, encoder.multiple)
        self._source, self._encoder, self._seed, self._sides = source, encoder, seed, tuple(sides)
        self._rows = table.rows.select_columns(list(sides))
        self._path, captions = table.path, different_captions(table, self._sides)
        self.prompts = list(dict.fromkeys(["", *captions]))
        self.key = {
            "format": FORMAT,
            "encoder": encoder.fingerprint,
            "multiple": encoder.multiple,
            "table": table.fingerprint,
            "sides": self._sides,
            "resolution": source.resolution,
            "buckets": source.buckets,
            "crop": source.crop,
            "flip": source.flip,
            "seed": seed if source.flip or source.crop == "random" else None,
            "dtype": source.cache_dtype,
        }
        name = hashlib.blake2b(json.dumps(self.key, sort_keys=True).encode(), digest_size=16).hexdigest()
        root = Path(source.cache_dir).expanduser() if source.cache_dir else default_cache_dir()
        self.folder = root / "encodings" / name
        self.shards = [*cut(self.folder, "images", len(table)), *cut(self.folder, "text", len(self.prompts))]

    @property
    def complete(self) -> bool:
        """Whether every shard is there."""
        return all(shard.path.exists() for shard in self.shards)

    def encode_shards(self, *, rank: int = 0, world: int = 1) -> None:
        """Encode this process's share of the shards that are not there yet.

        No collective is called: the caller waits for the other processes before `open`. The shares may change from call
        to call.

        Raises:
            UserError: The disk is full, or an encoding is not finite. What was finished stays, and the same call
                continues.
        """
        if rank == 0:
            log_cut_captions(self.prompts[1:], self._encoder, self._path)
        mine = [shard for shard in self.shards[rank::world] if not shard.path.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be made ({error.strerror}): set data.cache_dir.") from error
        if mine:
            write_file(self.folder / "key.json", json.dumps(self.key, indent=2))
        total = sum(len(shard.entries) for shard in mine)
        with contextlib.closing(track(self._encode(mine), "Encoding", total, shown=rank == 0)) as entries:
            for shard in mine:
                content = itertools.islice(entries, len(shard.entries))
                write_file(shard.path, lambda file, content=content: write_entries(file, content))

    def _encode(self, shards: list[Shard]) -> Iterator[dict[str, Any]]:
        """Yield the entries of `shards`; images are decoded and cropped by threads a few rows ahead."""
        rows = itertools.chain.from_iterable(shard.entries for shard in shards if shard.kind == "images")
        for prepared in ahead(self._prepare, rows, workers=WORKERS, depth=2 * WORKERS):
            if isinstance(prepared, BrokenImage):
                yield make_entry(str(prepared), (0, 0), {})
            else:
                target = prepared[self._sides[0]].size[4:].tolist()
                yield make_entry(None, target, encode_prepared(prepared, self._encoder, self._source))
        for position in itertools.chain.from_iterable(shard.entries for shard in shards if shard.kind == "text"):
            prompt = self.prompts[position]
            yield make_entry(prompt, (0, 0), encode_text(prompt, self._encoder, self._source))

    def _prepare(self, index: int) -> dict[str, Prepared] | BrokenImage:
        try:
            return prepare_row(self._rows[index], index, self._encoder.multiple, self._source, self._seed, self._sides)
        except BrokenImage as error:
            return error

    def open(self) -> CachedEncodings:
        """Open a complete cache for reading.

        Raises:
            UserError: Shards are missing or damaged.
        """
        missing = [shard.path.name for shard in self.shards if not shard.path.exists()]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(self.shards)} encoded files are missing in {self.folder} ({missing[0]}): "
                "run the command again."
            )
        images, text = (read_shards([s for s in self.shards if s.kind == kind]) for kind in ("images", "text"))
        return CachedEncodings(images, text, self.prompts, self.folder)


class CachedEncodings(Encodings):
    """Encodings read from a cache: memory-mapped, so that only the rows asked for are loaded."""

    read_ahead = 1

    def __init__(self, images: Dataset, text: Dataset, prompts: list[str], folder: Path):
        """Wrap the two tables of the cache in `folder`; entry i of `text` belongs to `prompts[i]`."""
        self._images, self._text, self.folder = images, text, folder
        self._position = {prompt: i for i, prompt in enumerate(prompts)}
        notes = images.select_columns(["note", "height", "width"])[:]
        self.broken = {i: note for i, note in enumerate(notes["note"]) if note is not None}
        self.targets = np.stack([np.array(notes["height"], np.int64), np.array(notes["width"], np.int64)], axis=1)

    def images(self, index: int) -> dict[str, Tensor]:
        """Read a row's encoded images."""
        return entry_tensors(self._images[index])

    def text(self, prompt: str) -> dict[str, Tensor]:
        """Read a prompt's text states."""
        return entry_tensors(self._text[self._position[prompt]])
