"""Write encoded pairs in shards (`data.shards`): each is encoded and written on its own, and nothing else is kept.

Which rows make which shard is known before anything is encoded: rows of one image size, in the order of the table, cut
by number. So processes share the shards, and after a kill the same command makes those that are not there. A row with
a broken image leaves its shard shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain, islice, tee
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from diffpo.data.cache import geometry_of
from diffpo.data.contents import read_contents
from diffpo.data.encode import BOTH, Encoder, find_all_latents
from diffpo.data.encode_many import Decoding, decoded, encode_images, encode_texts
from diffpo.data.images import Preparation, choose_target, target_sizes
from diffpo.data.lengths import Lengths, read_lengths
from diffpo.data.records import Source, Table
from diffpo.data.segments import SegmentLabels
from diffpo.data.shards import FORMAT, Shard, ShardSplit
from diffpo.data.storage import Storage, Written
from diffpo.disk.ahead import WORKERS, ahead
from diffpo.disk.packing import Row, write
from diffpo.disk.progress import progress, track
from diffpo.disk.rows import digest
from diffpo.errors import UserError
from diffpo.media.frames import BrokenImage, open_footage

SHARD_BYTES, MOST_ROWS = 128 * 2**20, 2**16
"""About how large a shard is made, and how many pairs it may hold."""


def recipe_of(source: Source, encoder: Encoder, seed: int) -> dict[str, Any]:
    """All that decides encodings beside the table, as plain values; where nothing is drawn, the seed does not."""
    drawn = seed if source.flip or source.crop == "random" else None
    named = {"format": FORMAT, "encoder": encoder.fingerprint, "dtype": source.cache_dtype, "seed": drawn}
    return named | geometry_of(source, encoder)


def table_of(source: Source) -> dict[str, Any]:
    """The settings that choose a table and its rows, as plain values; of paths the last name, since tables move."""
    names = ("split", "validation_split", "validation_fraction", "ties", "limit", "columns")
    places = {name: getattr(source, name) for name in ("path", "validation_path")}
    named = {name: place and Path(place).name for name, place in places.items()}
    return {"name": type(source).__name__} | named | {name: getattr(source, name) for name in names}


@dataclass(frozen=True)
class Sharding:
    """How a table becomes the shards of a split."""

    table: Table
    source: Source
    encoder: Encoder
    storage: Storage
    split: str
    seed: int
    recipe: Mapping[str, Any]
    """All that decides a shard beside the table: `recipe_of`, and how labels were made."""
    labels: Callable[[np.ndarray, float | None], SegmentLabels] | None = None
    """Labels of latent frames, for a table that has any: given the frames of each row, and their rate."""
    shard_rows: int | None = None
    """Pairs in a shard; None: as many as take about `SHARD_BYTES`."""
    shown: bool = True
    """Whether to show progress."""

    @cached_property
    def _batch(self) -> int:
        return self.source.encode_batch or self.encoder.usual_batch

    @cached_property
    def _lengths(self) -> Lengths:
        contents = {} if self.encoder.rule.most == 1 else self._contents
        return read_lengths(self.table, self.source, self.encoder.rule, contents, shown=self.shown)

    @cached_property
    def _contents(self) -> dict[str, Any]:
        return {side: read_contents(self.table, side, shown=self.shown) for side in BOTH}

    @cached_property
    def _preparation(self) -> Preparation:
        latents = {} if self.encoder.rule.most == 1 else find_all_latents(self.table, self._contents, self.encoder)
        source, encoder = self.source, self.encoder
        return Preparation(source, encoder.multiple, encoder.rule, self.seed, BOTH, self._lengths, latents)

    @cached_property
    def _decoding(self) -> Decoding:
        return Decoding(self._preparation, self.table.rows.select_columns([*BOTH]))

    @cached_property
    def _labelled(self) -> SegmentLabels | None:
        return None if self.labels is None else self.labels(self._lengths.frames, self._lengths.fps)

    def plan(self) -> list[tuple[tuple[int, int, int], np.ndarray]]:
        """The size and the row numbers of every shard, by size.

        Raises:
            UserError: No row can be used.
        """
        sizes, dropped = self._sizes(), list(self._lengths.dropped)
        usable = np.setdiff1d(np.arange(len(self.table)), dropped)
        if not len(usable):
            raise UserError(f"none of the pairs of {self.table.path} can be used.")
        many, plan = self.shard_rows or self._rows_that_fit(usable), []
        for size in np.unique(sizes[usable], axis=0):
            rows = usable[(sizes[usable] == size).all(axis=1)]
            plan += [(tuple(size.tolist()), rows[start : start + many]) for start in range(0, len(rows), many)]
        return plan

    def _sizes(self) -> np.ndarray:
        """`[n 3]` frames, height and width of every row; with buckets, headers of the first images decide them."""
        targets = target_sizes(self.source, self.encoder.multiple)
        sizes = np.zeros((len(self.table), 3), np.int32)
        sizes[:, 0], sizes[:, 1:] = self._lengths.frames, targets[0]
        if len(targets) > 1:

            def choose(row: int) -> tuple[int, int]:
                try:
                    with open_footage(self.table.cell(row, BOTH[0])) as footage:
                        return choose_target(targets, footage.size[1], footage.size[0])
                except BrokenImage:
                    return targets[0]  # it will be found broken again

            looked = ahead(choose, range(len(self.table)), workers=WORKERS, depth=4 * WORKERS)
            for row, target in enumerate(track(looked, "Measuring images", len(self.table), shown=self.shown)):
                sizes[row, 1:] = target
        return sizes

    def _rows_that_fit(self, usable: Sequence[int]) -> int:
        """As many pairs as take about `SHARD_BYTES`, with captions of their own, by the first one that is whole."""
        for row in usable[:WORKERS]:
            pairs, texts = self._encode([int(row)], iter([self._decoding(2 * int(row) + i) for i in (0, 1)]))
            if pairs:
                whole = [x.nbytes for each in [*pairs, *texts] for x in each[1].tensors.values()]
                return min(MOST_ROWS, max(1, SHARD_BYTES // sum(whole)))
        return 1024

    def write(self, *, rank: int = 0, world: int = 1) -> None:
        """Write this process's share of the shards that are not there yet; the caller waits for the others.

        Raises:
            UserError: A shard cannot be written, or an encoding is not finite. Finished shards stay.
        """
        todo = [
            (number, size, rows)
            for number, (size, rows) in list(enumerate(self.plan()))[rank::world]
            if self._told(number, rows) is None
        ]
        places = [2 * int(row) + side for _, _, rows in todo for row in rows for side in (0, 1)]
        with (
            decoded(self._decoding, places, self._batch) as found,
            progress(f"Encoding {self.split}", len(places) // 2, shown=self.shown) as advance,
        ):
            for number, size, rows in todo:
                self._write(number, size, rows, islice(found, 2 * len(rows)))
                advance(len(rows))

    def finish(self) -> ShardSplit:
        """What the index says of the split, once all shards are there."""
        told = [self._told(number, rows) for number, (_, rows) in enumerate(self.plan())]
        shards = [Shard.read(each["shard"]) for each in told if each is not None]
        if len(shards) < len(told):
            raise UserError(f"{len(told) - len(shards)} shards of {self.storage.address} are missing: run it again.")
        shards = tuple(shard for shard in shards if shard.rows)
        if not shards:
            raise UserError(f"none of the pairs of {self.table.path} has usable images.")
        return ShardSplit(shards, self.table.counts)

    def _name(self, number: int) -> str:
        return f"{self.split}/{number:05d}"

    def _told(self, number: int, rows: np.ndarray) -> dict[str, Any] | None:
        """What is written beside a shard of these rows, if it is there, and the shard is whole."""
        name = self._name(number)
        told = self.storage.read_json(f"{name}.json")
        if not isinstance(told, dict) or told.get("made of") != self._made_of(rows):
            return None
        there = self.storage.size(f"{name}.arrow") if told["shard"]["rows"] else 0
        return told if there is not None and told.get("bytes", there) == there else None

    def check_place(self) -> None:
        """Check that no shards of another table, or made with other settings, are where these go.

        Raises:
            UserError: There are some.
        """
        told = self.storage.read_json(f"{self._name(0)}.json")
        ours = isinstance(told, dict) and told.get("made of") == self._made_of(self.plan()[0][1])
        if told is not None and not ours:
            raise UserError(
                f"{self.storage.address} holds shards of another table, or that were made with other settings "
                f"({self._name(0)}.json): choose another place, or give --fresh to replace them."
            )

    def clear(self) -> None:
        """Remove the shards that an earlier call wrote."""
        number = 0
        while self.storage.size(f"{self._name(number)}.json") is not None:
            for suffix in ("arrow", "json"):
                self.storage.remove(f"{self._name(number)}.{suffix}")
            number += 1

    def _made_of(self, rows: np.ndarray) -> str:
        """What decides a shard: settings, table, rows."""
        return digest(repr(self.recipe), self.table.fingerprint, self.table.places[rows].tobytes()).hex()

    def _encode(self, rows: Sequence[int], found: Iterator[Any]) -> tuple[list[tuple[bytes, Row]], Iterator[Any]]:
        """Encode rows, of which both images are given, and their captions: keys and rows of the file."""
        encoded = encode_images(found, self.encoder, self.source, self._batch)
        said = [self.table.captions(side, list(rows)).to_pylist() for side in BOTH]
        pairs, captions = [], {"": None}
        for row, texts in zip(rows, zip(*said, strict=True), strict=True):
            sides = dict(zip(BOTH, islice(encoded, 2), strict=True))
            if any("broken" in each.values for each in sides.values()):
                continue
            captions |= dict.fromkeys(texts)
            tensors = {f"{side}_{name}": x for side, each in sides.items() for name, x in each.tensors.items()}
            keys = {side: digest(text).hex() for side, text in zip(BOTH, texts, strict=True)}
            pairs.append((digest(str(row)), Row({"captions": keys, **self._label(row)}, tensors)))
        texts = encode_texts(captions, self.encoder, self.source, self._batch)
        return pairs, ((digest(text), Row({}, row.tensors)) for text, row in zip(captions, texts, strict=True))

    def _label(self, row: int) -> dict[str, Any]:
        """What annotators said of a row."""
        names, preference = self.table.rows.column_names, 1.0
        if "preference" in names:
            preference = float(np.float32(self.table.cell(row, "preference")))
        label: dict[str, Any] = {"preference": preference}
        if "weight" in names:
            label["weight"] = float(np.float32(self.table.cell(row, "weight")))
        if self._labelled is not None:
            label["segments"] = self._labelled.rows([row])[0].tolist()
        return label

    def _write(self, number: int, size: tuple[int, int, int], rows: np.ndarray, found: Iterator[Any]) -> None:
        pairs, texts = self._encode(rows.tolist(), found)
        digests = []

        def noted() -> Iterator[tuple[bytes, Row]]:
            for key, row in chain(pairs, texts):
                digests.append(_identify(key, row.values, row.tensors))
                yield key, row

        def fill(file: BinaryIO) -> None:
            keys, both = tee(noted())
            write(file, (key for key, _ in keys), (row for _, row in both))

        name, written = self._name(number), Written(0, "")
        if pairs:
            written = self.storage.write(f"{name}.arrow", fill)
        labels = [row.values["preference"] for _, row in pairs]
        shard = Shard(
            file=f"{name}.arrow",
            rows=len(pairs),
            size=size,
            digest=digest(*digests).hex(),
            broken=len(rows) - len(pairs),
            against=sum(label < 0.5 for label in labels),
            ties=sum(label == 0.5 for label in labels),
            content=written.content,
        )
        told = {"made of": self._made_of(rows), "bytes": written.bytes, "shard": asdict(shard)}
        self.storage.write_json(f"{name}.json", told)


def _identify(key: bytes, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    return digest(key, repr(values), *(x.numpy().tobytes() for x in tensors.values()))
