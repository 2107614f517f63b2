"""The files of an encoding cache: Arrow streams of tensors by name, each there completely or not at all."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

from diffpo.errors import UserError

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

SHARD_ROWS = 128
"""Entries per shard, unless that gave more than `MOST_SHARDS`: what a kill costs at most."""
MOST_SHARDS = 512
"""Files per kind and table: each one is a memory map, of which a process may have some ten thousand."""
BATCH_ROWS = 16
"""Entries per Arrow record batch."""


@dataclass(frozen=True)
class Shard:
    """A file of the cache and the entries that belong into it."""

    path: Path
    kind: str
    """`images`, `text` or `trajectories`."""
    entries: range
    """Row numbers of the table, or positions in the list of prompts."""


def cut(folder: Path, kind: str, entries: int) -> list[Shard]:
    """Divide so many entries among files of `folder`."""
    length = max(SHARD_ROWS, -(-entries // MOST_SHARDS))
    starts = range(0, entries, length)
    names = [f"{kind}-{i:05d}-of-{len(starts):05d}.arrow" for i in range(len(starts))]
    return [
        Shard(folder / name, kind, range(start, min(start + length, entries)))
        for name, start in zip(names, starts, strict=True)
    ]


def _schema() -> pyarrow.Schema:
    import pyarrow

    string, integer = pyarrow.string(), pyarrow.int32()
    return pyarrow.schema(
        {
            "note": string,  # images: why the row is broken, null if it is not; text: the prompt
            "height": integer,  # target size of the images in pixels
            "width": integer,
            "names": pyarrow.list_(string),
            "dtypes": pyarrow.list_(string),
            "shapes": pyarrow.list_(pyarrow.list_(integer)),
            "data": pyarrow.list_(pyarrow.binary()),
        }
    )


def make_entry(note: str | None, target: Sequence[int], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Pack named tensors, with a note and the height and width of the images that they encode (0 for text)."""
    return {
        "note": note,
        "height": target[0],
        "width": target[1],
        "names": list(tensors),
        "dtypes": [str(x.dtype).removeprefix("torch.") for x in tensors.values()],
        "shapes": [list(x.shape) for x in tensors.values()],
        "data": [x.contiguous().numpy().tobytes() for x in tensors.values()],
    }


def entry_tensors(entry: dict[str, Any]) -> dict[str, Tensor]:
    """Unpack the named tensors of an entry, bit for bit."""
    columns = zip(entry["names"], entry["dtypes"], entry["shapes"], entry["data"], strict=True)
    return {
        name: torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype)).reshape(shape)
        for name, dtype, shape, data in columns
    }


def write_entries(file: BinaryIO, entries: Iterator[dict[str, Any]]) -> None:
    """Write entries as an Arrow stream; the same entries give the same bytes."""
    import pyarrow

    schema = _schema()
    with pyarrow.ipc.new_stream(file, schema) as writer:
        while batch := list(itertools.islice(entries, BATCH_ROWS)):
            writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema=schema))


def read_shards(shards: list[Shard]) -> Dataset:
    """Open finished files as one table; rows are loaded when they are asked for.

    Raises:
        UserError: A file is damaged.
    """
    import datasets
    import pyarrow

    parts = []
    for shard in shards:
        try:
            part = datasets.Dataset.from_file(str(shard.path))
            if len(part) != len(shard.entries):
                raise OSError(f"{len(part)} of {len(shard.entries)} entries")
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(f"{shard.path} is damaged ({error}): delete it and run the command again.") from error
        parts.append(part)
    return datasets.concatenate_datasets(parts)
