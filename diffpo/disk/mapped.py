"""Tables of Arrow columns that are made once, kept in a file and mapped: they take no memory of the process."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pyarrow

from diffpo.disk.files import write_file
from diffpo.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

SMALL = 2**18
"""Bytes of a table that is not worth a file: it stays in memory."""


def mapped(file: Path, make: Callable[[], pyarrow.Table]) -> Dataset:
    """Map the table that `file` keeps; if there is none, or a damaged one, make it and keep it.

    Where the file cannot be written the table stays in memory, with a warning.
    """
    import datasets

    with contextlib.suppress(OSError, pyarrow.ArrowException):
        return datasets.Dataset.from_file(str(file))
    table = make()
    if table.nbytes > SMALL:

        def write(opened: BinaryIO) -> None:
            with pyarrow.ipc.new_stream(opened, table.schema) as stream:
                stream.write_table(table)

        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_file(file, write)
            del table
            pyarrow.default_memory_pool().release_unused()
            return datasets.Dataset.from_file(str(file))
        except (OSError, UserError) as error:
            log.warning(f"The table stays in memory, and the next start reads it again: {error}")
            table = make()
    return datasets.Dataset(datasets.table.InMemoryTable(table))
