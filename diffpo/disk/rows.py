"""Rows by content, on disk: what was computed once is read, whoever asks for it, in whatever order.

A store is a folder whose name is the hash of its *recipe*: all that decides a row besides what the row is made of. A
row has a *key*, the hash of what it is made of. So a changed setting cannot read a stale row, and another table,
another order or a moved disk computes nothing again.

    store = RowStore("encodings", {"encoder": ..., "dtype": ...})
    store.fill(keys, compute, "Encoding")          # computes what is missing; any number of processes share the work
    store[key].tensors["mean"]                     # reads one row
    codes, kinds = store.values(keys)              # what all rows say, at once: that of key i is kinds[codes[i]]

Rows lie in Arrow files, each written whole or not at all, and read through memory maps. A kill loses at most the file
that was being written. Two processes that compute the same row write two files; one of them is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from diffpo.disk.ahead import behind
from diffpo.disk.files import sweep, write_file, write_json
from diffpo.disk.packing import KEY_BYTES, Row, unpack, write
from diffpo.disk.progress import track
from diffpo.errors import UserError

KEY = f"S{KEY_BYTES}"
"""What numpy calls it."""
ROWS_PER_FILE = 128
"""Rows in a file, unless that gave more than `MOST_FILES`: what a kill costs at most."""
MOST_FILES = 512
"""Files that one `fill` writes at most: each one is a memory map, of which a process may have some ten thousand."""
SEARCHED = 2**14
"""Keys that are looked up at a time: what the search takes in memory."""
OPEN = 1024
"""Record batches that a store holds open, some kilobytes each: opening one takes as long as reading a row."""
RECIPE = "recipe.json"


def digest(*parts: bytes | str) -> bytes:
    """Hash parts, each with its length, to a key of `KEY_BYTES` bytes."""
    state = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        state.update(len(content).to_bytes(8, "little") + content)
    return state.digest()


def as_keys(keys: Sequence[bytes] | np.ndarray) -> np.ndarray:
    """Keys as one array `[n]`: 16 bytes each, where a list of them has 60. An empty key stands for none."""
    return np.asarray(keys, KEY)


def locate(ordered: np.ndarray, keys: np.ndarray, begins: np.ndarray | None = None) -> np.ndarray:
    """Find keys among keys in the order of what they begin with: `[n]` places, the first of equal ones; -1: none.

    `begins` is what the ordered keys begin with, for a caller who keeps it: finding one key then does not read all.
    """
    found, begins = np.full(len(keys), -1, np.int32), _begin(ordered) if begins is None else begins
    for start in range(0, len(keys), SEARCHED):
        some = keys[start : start + SEARCHED]
        own, left = _begin(some), np.arange(len(some))
        at = np.searchsorted(begins, own)
        while len(left := left[at[left] < len(begins)]):  # once, unless different keys begin alike
            same = ordered[at[left]] == some[left]
            found[start + left[same]] = at[left[same]]
            left = left[~same]
            left = left[begins[at[left]] == own[left]]
            at[left] += 1
    return found


def _begin(keys: np.ndarray) -> np.ndarray:
    """What keys begin with, `[n]` numbers, which are compared faster than texts."""
    return np.ascontiguousarray(keys).view(">u8").reshape(-1, KEY_BYTES // 8)[:, 0].astype(np.uint64)


def key_at(keys: np.ndarray, place: int) -> bytes:
    """One key of an array; numpy itself takes zeros off the end."""
    return keys[place : place + 1].tobytes()


def cache_home(given: str | None = None) -> Path:
    """The folder of all caches: as given, else $DIFFPO_CACHE, else ~/.cache/diffpo."""
    return Path(given or os.environ.get("DIFFPO_CACHE") or "~/.cache/diffpo").expanduser()


class RowStore:
    """The rows of one recipe."""

    def __init__(
        self, kind: str, recipe: Mapping[str, Any], home: Path | None = None, rows_per_file: int = ROWS_PER_FILE
    ):
        """Find a store and what it holds; nothing is written.

        Args:
            kind: Name of the folder of all stores of this kind: "encodings".
            recipe: All that decides a row besides its key, as plain JSON values.
            home: The folder of all kinds; `cache_home()` by default.
            rows_per_file: What a kill costs at most: fewer where a row takes long.
        """
        self.recipe = json.loads(json.dumps(recipe))
        name = digest(json.dumps(self.recipe, sort_keys=True)).hex()
        self.folder = (home or cache_home()) / kind / name
        self.rows_per_file = rows_per_file
        self._readers: dict[tuple[Path, int], pyarrow.ipc.RecordBatchFileReader] = {}  # by name and size
        self.refresh()

    def refresh(self) -> None:
        """Look again at what is on the disk, such as what other processes have written."""
        found = sorted((file, file.stat().st_size) for file in self.folder.glob("*.arrow"))
        if found and found == list(self._readers):
            return
        self._readers = {file: self._readers.get(file) or _open(file[0]) for file in found}
        self._batches = [
            (file, number) for file, reader in self._readers.items() for number in range(reader.num_record_batches)
        ]
        self._batch = lru_cache(OPEN)(self._open_batch)
        columns = [self._column(batch, "key") for batch in range(len(self._batches))]
        self._starts = np.cumsum([0, *map(len, columns)], dtype=np.int32)
        keys = [np.frombuffer(c.buffers()[1], KEY, len(c), KEY_BYTES * c.offset) for c in columns]
        together = np.concatenate([as_keys([]), *keys])
        begins = _begin(together)
        self._order = np.argsort(begins, kind="stable").astype(np.int32)
        self._keys, self._begins = together[self._order], begins[self._order]

    def __len__(self) -> int:
        """Count the rows on disk, those that were computed twice included."""
        return len(self._keys)

    def __contains__(self, key: bytes) -> bool:
        """Whether a row is there."""
        return self.find([key])[0] >= 0

    def find(self, keys: Sequence[bytes] | np.ndarray) -> np.ndarray:
        """Where rows are among all: `[n]`, -1 for those that are not there."""
        return locate(self._keys, as_keys(keys), self._begins)

    def missing(self, keys: Sequence[bytes] | np.ndarray) -> np.ndarray:
        """Places in `keys` of the rows that are not there; an empty key stands for none."""
        return np.flatnonzero((self.find(keys) < 0) & (as_keys(keys) != b""))

    def __getitem__(self, key: bytes) -> Row:
        """Read a row.

        Raises:
            KeyError: It is not there.
        """
        at = self.find([key])[0]
        if at < 0:
            raise KeyError(key.hex())
        batches, rows = self._locate(np.array([at]))
        return unpack(self._batch(batches[0]).slice(rows[0], 1).to_pylist()[0])

    def values(self, keys: Sequence[bytes] | np.ndarray) -> tuple[np.ndarray, list[Mapping[str, Any]]]:
        """Read the values of many rows at once; their tensors are not touched.

        Returns:
            `[n]` numbers into the list of the different values.

        Raises:
            KeyError: A row is not there.
        """
        at = self.find(keys)
        if (at < 0).any():
            raise KeyError(key_at(as_keys(keys), int(np.argmin(at))).hex())
        batches, rows = self._locate(at)
        used = np.unique(batches)
        texts = pyarrow.chunked_array([self._column(batch, "values") for batch in used], pyarrow.string())
        starts = np.cumsum([0, *map(len, texts.chunks)], dtype=np.int32)
        coded = texts.dictionary_encode().combine_chunks()
        rows += starts[np.searchsorted(used, batches)]
        codes = coded.indices.to_numpy()[rows]
        asked = np.bincount(codes, minlength=len(coded.dictionary)) > 0
        kinds = [json.loads(text) for text in coded.dictionary.filter(pyarrow.array(asked)).to_pylist()]
        return (np.cumsum(asked, dtype=np.int32) - 1)[codes], kinds

    def pending(self, keys: Sequence[bytes] | np.ndarray, *, rank: int = 0, world: int = 1) -> list[list[int]]:
        """List what is to be computed by one of several processes, file by file.

        The keys are cut into pieces, of which every process gets its share, whether or not they are there already. So a
        call that follows a kill computes the rest of the same pieces.

        Args:
            keys: Those of all rows, in an order that does not change from call to call. A key may repeat.
            rank: Which of the processes this is.
            world: Number of processes.

        Returns:
            For each file to write, the places in `keys` of the rows that are missing.
        """
        keys = as_keys(keys)
        lacking = self.missing(keys)
        if not len(lacking):
            return []
        places = np.sort(np.unique(keys, return_index=True)[1])
        missing = np.isin(places, lacking)
        length = max(self.rows_per_file, -(-len(places) // MOST_FILES))
        starts = range(0, len(places), length)[rank::world]
        pieces = [places[start : start + length][missing[start : start + length]].tolist() for start in starts]
        return [piece for piece in pieces if piece]

    def fill(
        self,
        keys: Sequence[bytes] | np.ndarray,
        compute: Callable[[list[int]], Iterable[Row]],
        title: str | None,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Compute the missing rows of one process's share and keep them, with progress; another thread writes them.

        No collective is called: with several processes the caller waits for the others, and then calls `refresh`.

        Args:
            keys: See `pending`.
            compute: Yields the rows of the places in `keys` that it is given, in that order. It is called once per
                file, so that the batches that it makes depend on nothing else.
            title: What is done, for the progress: "Encoding"; None: whoever computes shows it.
            rank: This process.
            world: Number of processes.

        Raises:
            UserError: The disk is full, or whatever `compute` raises. Finished files stay.
        """
        keys = as_keys(keys)
        sweep(self.folder)
        pieces, shown = self.pending(keys, rank=rank, world=world), rank == 0 and title is not None
        rows = itertools.chain.from_iterable(compute(piece) for piece in pieces)
        with contextlib.closing(track(rows, title or "", sum(map(len, pieces)), shown=shown)) as computed:
            for piece in pieces:
                behind(itertools.islice(computed, len(piece)), partial(self.add, [key_at(keys, i) for i in piece]))
        self.refresh()

    def add(self, keys: Sequence[bytes], rows: Iterable[Row]) -> None:
        """Write one file of rows; `refresh` makes them known to this process.

        Raises:
            UserError: The folder cannot be made, or the disk is full.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot be made ({error.strerror}): set data.cache_dir or DIFFPO_CACHE to another one."
            ) from error
        if not (self.folder / RECIPE).exists():
            write_json(self.folder / RECIPE, self.recipe)
        write_file(self.folder / f"{secrets.token_hex(8)}.arrow", lambda file: write(file, keys, rows))

    def _locate(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Batches, and places in them, of what `find` found."""
        places = self._order[at]
        batches = np.searchsorted(self._starts, places, side="right").astype(np.int32) - 1
        return batches, places - self._starts[batches]

    def _open_batch(self, number: int) -> pyarrow.RecordBatch:
        file, place = self._batches[number]
        with _naming(file[0]):
            return self._readers[file].get_batch(place)

    def _column(self, batch: int, name: str) -> pyarrow.Array:
        return self._batch(batch).column(name)


def _open(file: Path) -> pyarrow.ipc.RecordBatchFileReader:
    """Open a file as a memory map."""
    with _naming(file):
        return pyarrow.ipc.open_file(pyarrow.memory_map(str(file)))


@contextlib.contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Name a file that turns out to be damaged."""
    try:
        yield
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{file} is damaged ({error}): delete it and run the command again.") from error
