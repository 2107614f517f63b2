"""Encoded pairs in shards: what `diffpo data encode` writes, and training reads where no disk holds all encodings.

    PLACE/index.json               all that decides the encodings, and the shards of each split
    PLACE/train/00000.arrow        pairs of one size, and the states of their captions, each once
    PLACE/train/00000.json         what the index says of it; there when the shard is whole

A shard is an Arrow file of rows (`disk.packing`): first the pairs, then the captions by their keys. The place may be an
object store (`Storage`). Shards from elsewhere are copied to this machine when their turn comes, and go when there are
more than `KEPT`.
"""

from __future__ import annotations

import re
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow
from torch import Tensor

from diffpo.data.records import Counts
from diffpo.data.storage import Storage
from diffpo.disk.packing import Row, unpack
from diffpo.disk.rows import digest
from diffpo.disk.tables import hash_file
from diffpo.errors import UserError

FORMAT = 1
"""Raise it when the meaning of a shard changes."""
INDEX = "index.json"
KEPT = 64
"""Shards that are open, or copied to this machine, unless the window asks for more."""
AGAIN = "remove it, and run the same `diffpo data encode` again, which writes what is not there."
FETCHERS = 4
"""Shards that are copied at a time."""


@dataclass(frozen=True)
class Shard:
    """One file of pairs whose images have one size."""

    file: str
    rows: int
    size: tuple[int, int, int]
    """Frames, height and width in pixels."""
    digest: str
    """Of the keys, values and tensors that it holds."""
    broken: int = 0
    """Rows that were to be in it, and whose images cannot be used."""
    against: int = 0
    """Pairs whose label says that the rejected side is better."""
    ties: int = 0
    """Pairs whose label says that none is."""
    content: str = ""
    """The hash of the file's bytes; "": of a shard that was written before there were any."""

    @staticmethod
    def read(plain: Mapping[str, Any]) -> Shard:
        """Make a shard of what JSON says of it.

        Raises:
            TypeError, ValueError: It says something else.
        """
        shard = Shard(**plain)
        frames, height, width = map(int, shard.size)
        if not re.fullmatch(r"[a-z]+/\d{5,}\.arrow", shard.file) or not shard.rows >= 0:  # no path to another place
            raise ValueError(f"{shard.file!r} with {shard.rows} rows is no shard")
        return replace(shard, size=(frames, height, width))


@dataclass(frozen=True)
class ShardSplit:
    """The shards of one split, ordered by the size of their images."""

    shards: tuple[Shard, ...]
    counts: Counts
    """What became of the table's rows."""

    @property
    def identity(self) -> str:
        """Changes with the pairs, their encodings and their order."""
        return digest(*(f"{shard.rows} {shard.digest}" for shard in self.shards)).hex()


@dataclass(frozen=True)
class Index:
    """What a place holds."""

    recipe: Mapping[str, Any]
    """All that decides the encodings beside the table."""
    columns: tuple[str, ...]
    """Of the table."""
    splits: Mapping[str, ShardSplit]
    table: Mapping[str, Any] = field(default_factory=dict)
    """The settings that chose the table and its rows; empty in an index of an earlier version."""

    @staticmethod
    def read(storage: Storage) -> Index:
        """Read the index of a place.

        Raises:
            UserError: There is none, or it is damaged.
        """
        found = storage.read_json(INDEX)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise UserError(
                f"{storage.address} has no {INDEX} of encoded pairs: `diffpo data encode CONFIG --out PLACE` writes "
                "it when all shards are there. The same command goes on after a kill."
            )
        try:
            splits = {
                name: ShardSplit(tuple(map(Shard.read, split["shards"])), Counts(**split["counts"]))
                for name, split in found["splits"].items()
            }
            return Index(dict(found["recipe"]), tuple(found["columns"]), splits, dict(found.get("table", {})))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{storage.address}/{INDEX} is damaged ({type(error).__name__}: {error}): remove it, and run the same "
                "`diffpo data encode` again."
            ) from error

    def write(self, storage: Storage) -> None:
        """Write the index: from then on the place can be read."""
        splits = {name: asdict(split) for name, split in self.splits.items()}
        plain = {"format": FORMAT, "recipe": self.recipe, "table": self.table}
        plain |= {"columns": self.columns, "splits": splits}
        storage.write_json(INDEX, plain)


class OpenShard:
    """A shard as a memory map: pairs by their place in it, captions' states by their keys."""

    def __init__(self, file: Path, pairs: int):
        """Open a file of which the first so many rows are pairs."""
        try:
            self._reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(file)))
            batches = [self._reader.get_batch(i) for i in range(self._reader.num_record_batches)]
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(f"{file} is damaged ({error}): {AGAIN}") from error
        self._batches, self._starts = batches, np.cumsum([0, *map(len, batches)])
        keys = [key.as_py() for batch in batches for key in batch.column("key")]
        self._texts = {key.hex(): pairs + place for place, key in enumerate(keys[pairs:])}

    def __getitem__(self, place: int) -> Row:
        """Read a row."""
        batch = int(np.searchsorted(self._starts, place, side="right")) - 1
        return unpack(self._batches[batch].slice(place - int(self._starts[batch]), 1).to_pylist()[0])

    def text(self, key: str) -> dict[str, Tensor]:
        """The states of a caption."""
        return dict(self[self._texts[key]].tensors)


class Shards:
    """The shards of a split, opened when they are asked for; those of a store are copied first, a few ahead."""

    def __init__(self, storage: Storage, shards: Sequence[Shard], home: Path, kept: int = KEPT):
        """Open none yet; copies lie below `home`, in a folder of their own for each place and process."""
        self._storage, self._shards, self._kept = storage, shards, kept
        self._home, self._fetched = home, OrderedDict[int, Future[Path]]()
        self._opened, self._lock, self._whole = OrderedDict[int, OpenShard](), Lock(), set[int]()
        self._pool = ThreadPoolExecutor(FETCHERS)
        if storage.folder is None:
            shutil.rmtree(home, ignore_errors=True)  # what a kill left behind

    def __getitem__(self, number: int) -> OpenShard:
        """Open a shard, or wait until it is here."""
        with self._lock:
            if number not in self._opened:
                file = self._file(number)
                self._check(number, file)
                self._opened[number] = OpenShard(file, self._shards[number].rows)
                while len(self._opened) > self._kept:
                    self._opened.popitem(last=False)
            self._opened.move_to_end(number)
            return self._opened[number]

    def _check(self, number: int, file: Path) -> None:
        """Refuse, when it is first opened, a file that is not the one that was written."""
        shard = self._shards[number]
        if number in self._whole or not shard.content:
            return
        if not file.is_file() or hash_file(file).hex() != shard.content:
            raise UserError(
                f"{self._storage.address}/{shard.file} is not what `diffpo data encode` wrote there: it is missing, "
                f"cut off, damaged or another shard's: {AGAIN}"
            )
        if self._storage.folder is not None:  # a copy may be made anew
            self._whole.add(number)

    def expect(self, numbers: Iterable[int]) -> None:
        """Begin to copy shards that will be asked for."""
        if self._storage.folder is None:
            with self._lock:
                for number in numbers:
                    self._begin(number)

    def _file(self, number: int) -> Path:
        if self._storage.folder is not None:
            return self._storage.folder / self._shards[number].file
        self._begin(number)
        return self._fetched[number].result()

    def _begin(self, number: int) -> None:
        if number not in self._fetched:
            self._fetched[number] = self._pool.submit(self._fetch, self._shards[number].file)
            while len(self._fetched) > self._kept:  # an open map keeps what it maps
                _, oldest = self._fetched.popitem(last=False)
                oldest.add_done_callback(_remove)
        self._fetched.move_to_end(number)

    def _fetch(self, name: str) -> Path:
        file = self._home / name
        self._storage.fetch(name, file)
        return file


def _remove(done: Future[Path]) -> None:
    if not done.cancelled() and done.exception() is None:
        done.result().unlink(missing_ok=True)
