"""Write a new pair table, row by row: a folder that is there whole or not at all.

    FOLDER/train-00000-of-00002.parquet, ...   read back with `data.name=pairs data.path=FOLDER`
    FOLDER/train.provenance.json               how it was made

Images are embedded as the bytes that they are; nothing is decoded or encoded anew.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffpo.disk.files import whole_folder
from diffpo.disk.progress import track
from diffpo.errors import UserError

if TYPE_CHECKING:
    from datasets import Features

RECORD = "train.provenance.json"
GROUP_ROWS = 64
"""Rows in memory at a time, and per row group."""
SHARD_BYTES = 500_000_000
"""Content after which the next file begins."""


def check_place(folder: Path, recipe: Mapping[str, Any], *, fresh: bool) -> None:
    """Check that a table may be written to `folder`: ask before the work begins.

    Args:
        folder: New, empty, or holding such a table, which will be replaced.
        recipe: All that decides the table, as plain JSON values.
        fresh: Whether a table that was made in another way may be replaced.

    Raises:
        UserError: The folder holds something else, or a table made in another way and `fresh` is not set.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give the folder that the new table should stand in.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    record = folder / RECORD
    if not record.is_file():
        raise UserError(f"{folder} holds other files and no {RECORD}: choose another folder.")
    try:
        same = json.loads(record.read_text(encoding="utf-8")).get("recipe") == recipe
    except ValueError as error:
        raise UserError(f"{record} is damaged ({error}): choose another folder, or remove this one.") from error
    if not (same or fresh):
        raise UserError(
            f"{folder} holds a table made with other settings ({RECORD} says how): choose another folder, or give "
            "--fresh to replace it."
        )


def write_table(
    folder: Path, features: Features, rows: Iterable[dict[str, Any]], total: int, record: Mapping[str, Any]
) -> None:
    """Write a table; one that stands there is replaced.

    Args:
        folder: See `check_place`.
        features: The columns.
        rows: One by one.
        total: How many they are.
        record: How the table was made, with `recipe`; for the provenance file.

    Raises:
        UserError: The disk is full; what stood there before is untouched.
    """
    with whole_folder(folder.absolute()) as temporary:
        _write_shards(temporary, features, track(rows, "Writing pairs", total))
        (temporary / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_shards(folder: Path, features: Features, rows: Iterator[dict[str, Any]]) -> None:
    """Write as many files as the content needs; their number, which is part of their names, is known at the end."""
    import pyarrow
    from pyarrow import parquet

    schema, files, size, writer = features.arrow_schema, [], 0, None
    with contextlib.closing(rows), contextlib.ExitStack() as stack:
        while group := list(itertools.islice(rows, GROUP_ROWS)):
            if writer is None or size >= SHARD_BYTES:
                stack.close()
                files.append(folder / f"{len(files)}.part")
                writer, size = stack.enter_context(parquet.ParquetWriter(files[-1], schema)), 0
            content = pyarrow.Table.from_pylist(group, schema=schema)
            writer.write_table(content)
            size += content.nbytes
    for number, file in enumerate(files):
        file.rename(folder / f"train-{number:05d}-of-{len(files):05d}.parquet")
