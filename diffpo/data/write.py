"""Write a pair table: a folder that is there whole or not at all.

FOLDER/train-00000-of-00002.parquet, ...   read back with `data.name=pairs data.path=FOLDER`
FOLDER/pairs.json                          how it was made

Images travel as the bytes or paths that they are; nothing is decoded or encoded anew.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffpo.data.progress import track
from diffpo.errors import UserError, disk_is_full

if TYPE_CHECKING:
    from datasets import Features

ABOUT = "pairs.json"
GROUP_ROWS = 64
"""Rows in memory at a time, and per row group."""
SHARD_BYTES = 500_000_000
"""Content after which the next file begins."""


@dataclass(frozen=True)
class Part:
    """One split of a table to be written."""

    features: Features
    rows: Iterable[dict[str, Any]]
    """One by one; image cells as they are, they are not encoded anew."""
    total: int
    """How many rows that will be."""


def check_place(folder: Path) -> None:
    """Check that a table may be written to `folder`: it is new, empty, or such a table, which is then replaced.

    Raises:
        UserError: It holds something else.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / ABOUT).is_file():
        raise UserError(f"{folder} holds other files and no {ABOUT}. Choose a folder that is new or empty for --out.")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; --out is a folder. Choose another name.")


def write_table(folder: Path, parts: Mapping[str, Part], about: Mapping[str, Any]) -> None:
    """Write a pair table.

    Args:
        folder: See `check_place`.
        parts: By the name of the split.
        about: How it was made; goes into `pairs.json`.

    Raises:
        UserError: The folder holds something else, or the disk is full.
    """
    check_place(folder)
    folder = folder.absolute()
    temporary = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for split, part in parts.items():
            _write_part(temporary, split, part)
        (temporary / ABOUT).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            _sync(path)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
        _sync(folder.parent)
    except OSError as error:
        if not disk_is_full(error):
            raise
        raise UserError(
            f"The disk is full: {folder} could not be written ({error.strerror}). Make room and run the command again, "
            "or choose another disk for --out."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_part(folder: Path, split: str, part: Part) -> None:
    """Write one split as so many files as its content needs; their number is known at the end."""
    import pyarrow
    from pyarrow import parquet

    schema, files, size, writer = part.features.arrow_schema, [], 0, None
    with contextlib.closing(track(part.rows, f"Writing {split}", part.total)) as rows, contextlib.ExitStack() as stack:
        for group in _grouped(rows):
            if writer is None or size >= SHARD_BYTES:
                stack.close()
                files.append(folder / f"{len(files)}.part")
                writer, size = stack.enter_context(parquet.ParquetWriter(files[-1], schema)), 0
            content = pyarrow.Table.from_pylist(group, schema=schema)
            writer.write_table(content)
            size += content.nbytes
    for number, file in enumerate(files):
        file.rename(folder / f"{split}-{number:05d}-of-{len(files):05d}.parquet")


def _grouped(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while group := list(itertools.islice(rows, GROUP_ROWS)):
        yield group


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
