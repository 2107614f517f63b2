"""Rows by content, on disk: what was computed once is read, whoever asks for it, in whatever order.

A store is a folder whose name is the hash of its *recipe*: all that decides a row besides what the row is made of. A
row has a *key*, the hash of what it is made of. So a changed setting cannot read a stale row, and another table,
another order or a moved disk computes nothing again.

    store = RowStore("encodings", {"encoder": ..., "dtype": ...})
    store.fill(keys, compute, "Encoding")          # computes what is missing; any number of processes share the work
    store[key].tensors["chosen_mean"]

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from diffpo.disk.files import sweep, write_file, write_json
from diffpo.disk.progress import track
from diffpo.errors import UserError

if TYPE_CHECKING:
    import pyarrow
    from torch import Tensor

KEY_BYTES = 16
ROWS_PER_FILE = 128
"""Rows in a file, unless that gave more than `MOST_FILES`: what a kill costs at most."""
MOST_FILES = 512
"""Files that one `fill` writes at most: each one is a memory map, of which a process may have some ten thousand."""
BATCH_ROWS = 16
"""Rows per Arrow record batch: what is held in memory while a file is written."""
RECIPE = "recipe.json"


def digest(*parts: bytes | str) -> bytes:
    """Hash parts, each with its length, to a key of `KEY_BYTES` bytes."""
    state = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        state.update(len(content).to_bytes(8, "little") + content)
    return state.digest()


def cache_home(given: str | None = None) -> Path:
    """The folder of all caches: as given, else $DIFFPO_CACHE, else ~/.cache/diffpo."""
    return Path(given or os.environ.get("DIFFPO_CACHE") or "~/.cache/diffpo").expanduser()


@dataclass(frozen=True)
class Row:
    """What is kept of one computation."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON values."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors by name; they come back bit for bit."""


class RowStore:
    """The rows of one recipe."""

    def __init__(self, kind: str, recipe: Mapping[str, Any], home: Path | None = None):
        """Find a store and what it holds; nothing is written.

        Args:
            kind: Name of the folder of all stores of this kind: "encodings".
            recipe: All that decides a row besides its key, as plain JSON values.
            home: The folder of all kinds; `cache_home()` by default.
        """
        self.recipe = json.loads(json.dumps(recipe))
        name = digest(json.dumps(self.recipe, sort_keys=True)).hex()
        self.folder = (home or cache_home()) / kind / name
        self.refresh()

    def refresh(self) -> None:
        """Look again at what is on the disk, such as what other processes have written."""
        self._files = sorted(self.folder.glob("*.arrow"))
        self._tables: dict[int, pyarrow.Table] = {}
        keys, places = [np.zeros((0, 2), ">u8")], [np.zeros((0, 2), np.int32)]
        for number in range(len(self._files)):
            column = self._table(number).column("key").combine_chunks()
            found = np.frombuffer(column.buffers()[1], ">u8")[2 * column.offset :][: 2 * len(column)].reshape(-1, 2)
            keys.append(found)
            places.append(np.stack([np.full(len(found), number, np.int32), np.arange(len(found), dtype=np.int32)], 1))
        high, low = np.concatenate(keys).astype(np.uint64).T
        order = np.lexsort((low, high))
        self._high, self._low, self._places = high[order], low[order], np.concatenate(places)[order]

    def __len__(self) -> int:
        """Count the rows on disk, those that were computed twice included."""
        return len(self._high)

    def __contains__(self, key: bytes) -> bool:
        """Whether a row is there."""
        return self._find(key) is not None

    def __getitem__(self, key: bytes) -> Row:
        """Read a row.

        Raises:
            KeyError: It is not there.
        """
        place = self._find(key)
        if place is None:
            raise KeyError(key.hex())
        number, row = place
        return _unpack(self._table(number).slice(row, 1).to_pylist()[0])

    def pending(self, keys: Sequence[bytes], *, rank: int = 0, world: int = 1) -> list[list[int]]:
        """List what is to be computed by one of several processes, file by file.

        The keys are cut into pieces, of which every process gets its share, whether or not they are there already. So a
        call that follows a kill computes the rest of the same pieces.

        Args:
            keys: Those of all rows, in an order that does not change from call to call. A key may repeat.
            rank: This process.
            world: Number of processes.

        Returns:
            For each file to write, the places in `keys` of the rows that are missing.
        """
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        places = sorted(first.values())
        length = max(ROWS_PER_FILE, -(-len(places) // MOST_FILES))
        pieces = [places[start : start + length] for start in range(0, len(places), length)]
        missing = [[i for i in piece if keys[i] not in self] for piece in pieces[rank::world]]
        return [piece for piece in missing if piece]

    def fill(
        self,
        keys: Sequence[bytes],
        compute: Callable[[list[int]], Iterable[Row]],
        title: str,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Compute the missing rows of one process's share and keep them, with progress.

        No collective is called: with several processes the caller waits for the others, and then calls `refresh`.

        Args:
            keys: See `pending`.
            compute: Yields the rows of the places in `keys` that it is given, in that order. It is called once per
                file, so that the batches that it makes depend on nothing else.
            title: What is done, for the progress: "Encoding".
            rank: This process.
            world: Number of processes.

        Raises:
            UserError: The disk is full, or whatever `compute` raises. Finished files stay.
        """
        sweep(self.folder)
        pieces = self.pending(keys, rank=rank, world=world)
        rows = itertools.chain.from_iterable(compute(piece) for piece in pieces)
        with contextlib.closing(track(rows, title, sum(map(len, pieces)), shown=rank == 0)) as computed:
            for piece in pieces:
                self.add([keys[i] for i in piece], itertools.islice(computed, len(piece)))
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
                f"{self.folder} cannot be made ({error.strerror}): set DIFFPO_CACHE to another folder."
            ) from error
        if not (self.folder / RECIPE).exists():
            write_json(self.folder / RECIPE, self.recipe)
        packed = (_pack(key, row) for key, row in zip(keys, rows, strict=True))
        write_file(self.folder / f"{secrets.token_hex(8)}.arrow", lambda file: _write(file, packed))

    def _find(self, key: bytes) -> tuple[int, int] | None:
        high, low = np.frombuffer(key, ">u8").astype(np.uint64)
        for i in range(int(np.searchsorted(self._high, high)), len(self._high)):
            if self._high[i] != high:
                break
            if self._low[i] == low:
                number, row = self._places[i]
                return int(number), int(row)
        return None

    def _table(self, number: int) -> pyarrow.Table:
        """Open a file as a memory map.

        Raises:
            UserError: It is damaged.
        """
        import pyarrow

        if number not in self._tables:
            path = self._files[number]
            try:
                self._tables[number] = pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all()
            except (OSError, pyarrow.ArrowException) as error:
                raise UserError(f"{path} is damaged ({error}): delete it and run the command again.") from error
        return self._tables[number]


def _schema() -> pyarrow.Schema:
    import pyarrow

    string = pyarrow.string()
    return pyarrow.schema(
        {
            "key": pyarrow.binary(KEY_BYTES),
            "values": string,  # JSON
            "names": pyarrow.list_(string),
            "dtypes": pyarrow.list_(string),
            "shapes": pyarrow.list_(pyarrow.list_(pyarrow.int32())),
            "data": pyarrow.list_(pyarrow.large_binary()),
        }
    )


def _write(file: BinaryIO, rows: Iterator[dict[str, Any]]) -> None:
    """Write packed rows as an Arrow file; the same rows give the same bytes."""
    import pyarrow

    schema = _schema()
    with pyarrow.ipc.new_file(file, schema) as writer:
        while batch := list(itertools.islice(rows, BATCH_ROWS)):
            writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema=schema))


def _pack(key: bytes, row: Row) -> dict[str, Any]:
    tensors = row.tensors.values()
    return {
        "key": key,
        "values": json.dumps(row.values),
        "names": list(row.tensors),
        "dtypes": [str(x.dtype).removeprefix("torch.") for x in tensors],
        "shapes": [list(x.shape) for x in tensors],
        "data": [_bytes(x) for x in tensors],
    }


def _bytes(x: Tensor) -> bytes:
    import torch

    flat = x.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if x.numel() else b""


def _unpack(packed: Mapping[str, Any]) -> Row:
    tensors: dict[str, Tensor] = {}
    for name, dtype, shape, data in zip(
        packed["names"], packed["dtypes"], packed["shapes"], packed["data"], strict=True
    ):
        import torch

        kind = getattr(torch, dtype)
        flat = torch.frombuffer(bytearray(data), dtype=kind) if data else torch.zeros(0, dtype=kind)
        tensors[name] = flat.reshape(shape)
    return Row(json.loads(packed["values"]), tensors)
