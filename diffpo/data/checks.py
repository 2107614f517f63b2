"""What the columns of a pair table may hold, as Arrow columns: no row is made a Python object to check it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pyarrow
from pyarrow import compute, types

from diffpo.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset


def arrow_column(rows: Dataset, name: str) -> pyarrow.ChunkedArray:
    """Read one column as Arrow keeps it."""
    return rows.select_columns([name]).with_format("arrow")[:][name]


def is_text(kind: pyarrow.DataType) -> bool:
    """Whether a column of this type holds texts."""
    return types.is_string(kind) or types.is_large_string(kind)


def has_words(captions: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    """Whether images have captions of their own: a blank one is none (CSV files cannot say null)."""
    trimmed = compute.utf8_trim_whitespace(captions.cast(pyarrow.string()))
    return compute.fill_null(compute.greater(compute.utf8_length(trimmed), 0), False)


def has_text(rows: Dataset, name: str, path: str) -> np.ndarray:
    """`[n]` whether a row has a prompt; an empty one counts. Texts with marks that no text has are refused."""
    check_texts(rows, name, path)
    cells = arrow_column(rows, name)
    return np.array(cells.is_valid()) if is_text(cells.type) else np.zeros(len(cells), bool)


def check_texts(rows: Dataset, name: str, path: str) -> None:
    """Refuse byte order marks, marks for lost characters and NUL, as `disk.tables` does: not all tables are its own."""
    cells = arrow_column(rows, name)
    if not is_text(cells.type):
        return
    marked = compute.fill_null(compute.match_substring_regex(cells, "[\\x{FEFF}\\x{FFFD}\\x00]"), False)
    if compute.any(marked).as_py():
        row = compute.index(marked, True).as_py()
        raise UserError(
            f"{path}: `{name}` of row {row} is {cells[row].as_py()[:60]!r}, which holds marks that are no text. Write "
            "the table again from texts that were read as what they are, or leave the row out."
        )


def check_captions(rows: Dataset, name: str, path: str) -> None:
    """Refuse captions that are neither texts nor null."""
    cells = arrow_column(rows, name)
    if not is_text(cells.type):
        refuse(cells.is_valid().to_numpy(), cells, f"{path}: `{name}` holds captions, texts or null")
    check_texts(rows, name, path)


def check_users(rows: Dataset, name: str, path: str) -> None:
    """Refuse users who are neither texts nor numbers."""
    cells = arrow_column(rows, name)
    if types.is_nested(cells.type):
        refuse(cells.is_valid().to_numpy(), cells, f"{path}: `{name}` holds names, numbers or null")


def user_name(value: str | float | None) -> str | None:
    """Name the user of a row; None: nobody is known.

    A column of numbers in which one is missing is one of fractions, as many programs write it: user 3 is not 3.0 there.
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        value = int(value) if value.is_integer() else value
    return None if value is None or not str(value).strip() else str(value)


def as_numbers(cells: pyarrow.ChunkedArray) -> np.ndarray:
    """`[n]` float64, booleans being 1 and 0; NaN where a value is missing or is no number."""
    return cells.cast("float64", safe=False).to_numpy() if _is_numeric(cells) else np.full(len(cells), np.nan)


def read_numbers(rows: Dataset, name: str, path: str) -> np.ndarray:
    """`[n]` numbers, as in `as_numbers`; a value that is neither a number nor missing is refused."""
    cells = arrow_column(rows, name)
    if not _is_numeric(cells):
        refuse(cells.is_valid().to_numpy(), cells, f"{path}: `{name}` holds numbers, booleans or null")
    return as_numbers(cells)


def _is_numeric(cells: pyarrow.ChunkedArray) -> bool:
    return types.is_integer(cells.type) or types.is_floating(cells.type) or types.is_boolean(cells.type)


def refuse(wrong: np.ndarray, cells: pyarrow.ChunkedArray, what: str, advice: str = "") -> None:
    """Name the first rows that are wrong, if there are any."""
    rows = np.flatnonzero(wrong)
    if len(rows):
        examples = ", ".join(f"{cells[i].as_py()!r} in row {i}" for i in rows[:3].tolist())
        raise UserError(f"{what}; {len(rows)} rows say something else ({examples}). {advice}".rstrip())
