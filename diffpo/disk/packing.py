"""Rows as Arrow records: plain values as JSON, tensors as their bytes; the same rows give the same file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow

if TYPE_CHECKING:
    from torch import Tensor

KEY_BYTES = 16
BATCH_ROWS, BATCH_BYTES = 256, 8 * 2**20
"""Rows and bytes of tensors after which an Arrow record batch ends: what is held in memory while a file is written."""

COLUMNS = pyarrow.schema(
    {
        "key": pyarrow.binary(KEY_BYTES),
        "values": pyarrow.string(),
        "names": pyarrow.list_(pyarrow.string()),
        "dtypes": pyarrow.list_(pyarrow.string()),
        "shapes": pyarrow.list_(pyarrow.list_(pyarrow.int32())),
        "data": pyarrow.list_(pyarrow.large_binary()),
    }
)
"""Of a file of rows."""


@dataclass(frozen=True)
class Row:
    """What is kept of one computation."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON values."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors by name; they come back bit for bit."""


def write(file: BinaryIO, keys: Iterable[bytes], rows: Iterable[Row]) -> None:
    """Write rows, one for each key, as an Arrow file."""
    with pyarrow.ipc.new_file(file, COLUMNS) as writer:
        batch, size = [], 0
        for key, row in zip(keys, rows, strict=True):
            batch.append(_pack(key, row))
            size += sum(map(len, batch[-1]["data"]))
            if len(batch) == BATCH_ROWS or size >= BATCH_BYTES:
                writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema=COLUMNS))
                batch, size = [], 0
        if batch:
            writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema=COLUMNS))


def _pack(key: bytes, row: Row) -> dict[str, Any]:
    import torch

    tensors = row.tensors.values()
    return {
        "key": key,
        "values": json.dumps(row.values),
        "names": list(row.tensors),
        "dtypes": [str(x.dtype).removeprefix("torch.") for x in tensors],
        "shapes": [list(x.shape) for x in tensors],
        "data": [x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() for x in tensors],
    }


def unpack(packed: Mapping[str, Any]) -> Row:
    """Make a row again of what Arrow gives of it."""

    def tensor(dtype: str, shape: list[int], data: bytes) -> Tensor:
        import torch

        kind = getattr(torch, dtype)
        return (torch.frombuffer(bytearray(data), dtype=kind) if data else torch.zeros(0, dtype=kind)).reshape(shape)

    tensors = map(tensor, packed["dtypes"], packed["shapes"], packed["data"])
    return Row(json.loads(packed["values"]), dict(zip(packed["names"], tensors, strict=True)))
