"""Encodings on disk: made once for an image or a prompt, whatever table, order or method asks for them.

They are rows of two stores (`disk.rows`), one of images and one of texts, whose names are hashes of what decides an
encoding: the encoder's files, the size, the precision. An image is kept under the hash of its bytes, and of what was
drawn for its pair where something is drawn; a text under its hash. So a new row in the table, a moved folder, another
limit or another method encodes nothing again, and a changed setting cannot read a stale row. A kill costs the file that
was being written at most, and the same call continues.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from diffpo.data.contents import Contents, read_contents
from diffpo.data.encode import (
    BOTH,
    Encoder,
    Encodings,
    find_all_latents,
    has_captions,
    log_cut_captions,
)
from diffpo.data.encode_many import Decoding, decoded, encode_images, encode_texts
from diffpo.data.images import Preparation, draw_window, target_sizes
from diffpo.data.lengths import Lengths, describe_broken_image, read_lengths
from diffpo.disk.rows import Row, RowStore, as_keys, digest, key_at
from diffpo.errors import UserError

if TYPE_CHECKING:
    from diffpo.data.records import Source, Table

FORMAT = 2
"""Raise it when the meaning of a row's content changes."""


def geometry_of(source: Source, encoder: Encoder) -> dict[str, Any]:
    """What decides how images and clips become what an encoder takes, beside what is drawn for their rows."""
    names = ("resolution", "buckets", "crop", "flip")
    geometry = {"multiple": encoder.multiple, **{name: getattr(source, name) for name in names}}
    if encoder.rule.most != 1:
        return geometry | {"frames": source.frames, "fps": source.fps or encoder.rule.fps, "step": encoder.rule.step}
    return geometry if source.frames is None else geometry | {"frames": source.frames}


class EncodingCache:
    """The encodings of one table under one set of settings."""

    def __init__(
        self, table: Table, source: Source, encoder: Encoder, *, seed: int, sides: Sequence[str] = BOTH, rank: int = 0
    ):
        """Find what is there already; nothing is encoded.

        Args:
            table: The pairs.
            source: How images are prepared; `cache_dir` and `cache_dtype`.
            encoder: Identity of the networks, and the networks.
            seed: What flips and random crops depend on.
            sides: Sides that the method uses; the other one is neither decoded nor encoded.
            rank: This process; only rank 0 shows progress.

        Raises:
            UserError: The encoder cannot take the resolution.
        """
        target_sizes(source, encoder.multiple)
        self._source, self._encoder, self._seed, self._sides, self._rank = source, encoder, seed, tuple(sides), rank
        self._table, self._rows = table, table.rows.select_columns(list(sides))
        home = Path(source.cache_dir).expanduser() if source.cache_dir else None
        same = {"format": FORMAT, "encoder": encoder.fingerprint, "dtype": source.cache_dtype}
        self._batch = source.encode_batch or encoder.usual_batch
        if self._batch > 1:
            same["together"] = True  # what is in a batch decides the last bits
        self.media = RowStore("encodings", {"what": "images", **same, **geometry_of(source, encoder)}, home)
        self.texts = RowStore("encodings", {"what": "texts", **same}, home)
        self._contents = {side: read_contents(table, side, home, shown=rank == 0) for side in sides}
        self._lengths = read_lengths(table, source, encoder.rule, self._contents, home, shown=rank == 0)
        self._latents = find_all_latents(table, self._contents, encoder)
        lengths, latents = self._lengths, self._latents
        self._preparation = Preparation(source, encoder.multiple, encoder.rule, seed, self._sides, lengths, latents)
        self._keys = {side: self._key_images(side) for side in sides}
        self._captioned = list(sides) if has_captions(table, sides) else [sides[0]]
        parts = (part for side in self._captioned for part in table.in_parts(table.captions, side))
        self.text_keys = np.concatenate([as_keys([digest(text) for text in part]) for part in chain([[""]], parts)])

    def _key_images(self, side: str) -> np.ndarray:
        """`[n]` keys of a side's images: by content, and by what its row makes of it; empty for those not used."""
        keys, lengths = self._key_drawn(self._contents[side]), self._lengths
        if not (lengths.dropped or lengths.own or self._latents):
            return keys  # of images, most often the contents' own
        keys = keys.copy()
        keys[list(lengths.dropped)] = b""
        for row in lengths.shortened(side).tolist():
            if keys[row]:
                keys[row] = digest(key_at(keys, row), str(lengths.frames[row]))
        for row in self._latents.get(side, {}):
            if keys[row]:
                keys[row] = digest(key_at(keys, row), "latents")
        return keys

    def _key_drawn(self, contents: Contents) -> np.ndarray:
        """Keys by content, and by what is drawn for their rows."""
        source, seed = self._source, self._seed
        if not (source.flip or source.buckets or source.crop == "random"):
            return contents.keys
        keys, first = np.zeros_like(contents.keys), self._contents[self._sides[0]].keys
        usable = (contents.keys != b"") & (first != b"")
        for row in np.flatnonzero(usable).tolist():
            window = draw_window(source, seed, row)
            drawn = struct.pack("<?dd", window.flip, window.top, window.left)
            size_of = key_at(first, row) if source.buckets else b""  # with buckets, the first image decides the size
            keys[row] = digest(key_at(contents.keys, row), drawn, size_of)
        return keys

    @property
    def missing(self) -> int:
        """How many images and texts are still to be encoded."""
        asked = (self.media, self.image_keys), (self.texts, self.text_keys)
        return sum(len(np.unique(keys[store.missing(keys)])) for store, keys in asked)

    @property
    def image_keys(self) -> np.ndarray:
        """Keys of all images, row by row and side by side; empty for those that cannot be read."""
        return np.stack([self._keys[side] for side in self._sides], axis=1).reshape(-1)

    def fill(self, *, world: int = 1) -> None:
        """Encode this process's share of what is not there yet.

        No collective is called: with several processes (`world`) the caller waits for the others before `open`.

        Raises:
            UserError: The disk is full, or an encoding is not finite. What was finished stays, and the same call
                continues.
        """
        share = {"rank": self._rank, "world": world}
        places = [place for piece in self.media.pending(self.image_keys, **share) for place in piece]
        with decoded(Decoding(self._preparation, self._rows), places, self._batch) as found:

            def encode(piece: Sequence[int]) -> Iterator[Row]:
                return encode_images(islice(found, len(piece)), self._encoder, self._source, self._batch)

            self.media.fill(self.image_keys, encode, "Encoding images", **share)
        self.texts.fill(self.text_keys, self._encode_texts, "Encoding prompts", **share)

    def _encode_texts(self, places: Sequence[int]) -> Iterator[Row]:
        return encode_texts(map(self._text_at, places), self._encoder, self._source, self._batch)

    def _text_at(self, place: int) -> str:
        """The text of a place in `text_keys`."""
        side, row = divmod(place - 1, len(self._table))
        return self._table.captions(self._captioned[side], [row])[0].as_py() if place else ""

    def open(self) -> CachedEncodings:
        """Read what all processes have encoded.

        Raises:
            UserError: Encodings are missing or damaged.
        """
        self.media.refresh()
        self.texts.refresh()
        if self.missing:
            raise UserError(
                f"{self.missing} encodings are missing in {self.media.folder.parent}: run the command again."
            )
        if self._rank == 0:
            different = np.unique(self.text_keys[1:])
            codes, kinds = self.texts.values(different)
            counts = np.bincount(codes, minlength=len(kinds))
            cut = Counter[int]()
            for count, kind in zip(counts.tolist(), kinds, strict=True):
                cut.update(dict.fromkeys(kind["cut"], count))
            log_cut_captions(cut, len(different), self._table.path)
        return CachedEncodings(self._table, self.media, self.texts, self._keys, self._contents, self._lengths)


class CachedEncodings(Encodings):
    """Encodings read from the stores: memory-mapped, so that only the rows asked for are loaded."""

    read_ahead = 1

    def __init__(
        self,
        table: Table,
        media: RowStore,
        texts: RowStore,
        keys: dict[str, np.ndarray],
        contents: dict[str, Contents],
        lengths: Lengths,
    ):
        """Find the broken rows and the sizes; `keys` and `contents` are given per side."""
        self.media, self.texts, self.keys, self.fps = media, texts, keys, lengths.fps
        self.contents = {side: each.keys for side, each in contents.items()}
        self.broken, self.targets = {}, np.zeros((len(table), 3), np.int32)
        for side in reversed(list(keys)):  # so that what is wrong with the first side is named
            reasons = dict(contents[side].unreadable)
            usable = np.flatnonzero(keys[side] != b"")
            codes, kinds = media.values(keys[side][usable])
            targets = [kind.get("target", (0, 0, 0)) for kind in kinds] or [(0, 0, 0)]
            self.targets[usable] = np.array(targets, np.int32)[codes]
            for code, kind in enumerate(kinds):
                if "broken" in kind:
                    reasons |= dict.fromkeys(usable[codes == code].tolist(), kind["broken"])
            for row, reason in reasons.items():
                self.broken[row] = describe_broken_image(side, table.cell(row, side), reason)
        self.broken = dict(sorted((self.broken | lengths.dropped).items()))
        self.targets[list(self.broken)] = 0

    def images(self, index: int) -> dict[str, Tensor]:
        rows = {side: self.media[key_at(keys, index)] for side, keys in self.keys.items()}
        return {f"{side}_{name}": x for side, row in rows.items() for name, x in row.tensors.items()}

    def text(self, prompt: str) -> dict[str, Tensor]:
        return dict(self.texts[digest(prompt)].tensors)
