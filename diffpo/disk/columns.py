"""Tables in text as Arrow columns, each of the type of its values."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import compute

from diffpo.disk.tables import DELIMITERS, Row, kind_of, read_rows
from diffpo.errors import UserError

CHUNK_ROWS = 4096
"""Rows that are Python objects at a time, while a text becomes columns."""
MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")
"""What stands for a missing value in a column of numbers of a CSV file."""


def read_columns(path: Path, texts: Sequence[str] = ()) -> pyarrow.Table:
    """Read a table in text (not parquet, which is mapped instead) as columns in memory.

    The type of a column is that of its values: integers and decimals together are decimals, and a value may be missing
    anywhere. Integers that 64 bits cannot hold stay what they are, as texts. In CSV, where all is text, a column whose
    every value is a number or a boolean becomes one.

    Args:
        path: A table.
        texts: Columns that are texts whatever they look like.

    Raises:
        UserError: The table cannot be read, or the values of a column are of different kinds; the message names a row.
    """
    rows, parts = read_rows(path), []
    while chunk := list(itertools.islice(rows, CHUNK_ROWS)):
        names = dict.fromkeys(name for _, row in chunk for name in row)
        parts.append(pyarrow.table({name: _column(name, chunk) for name in names}))
    if not parts:
        return pyarrow.table({})
    try:
        table = join_tables(parts)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: a column holds values of different kinds: {error}.") from error
    if path.suffix.lower() in DELIMITERS:
        for place, name in enumerate(table.column_names):
            if name not in texts:
                table = table.set_column(place, name, _typed(table.column(name)))
    return table


def join_tables(parts: Sequence[pyarrow.Table]) -> pyarrow.Table:
    """Lay tables below each other: a column that some lack is missing there, integers become decimals where needed.

    Raises:
        pyarrow.ArrowException: The types of a column have nothing in common.
    """
    return pyarrow.concat_tables(parts, promote_options="permissive")


def _column(name: str, rows: Iterable[tuple[str, Row]]) -> pyarrow.Array:
    """Make a column of the values that rows have under a name."""
    values = [row.get(name) for _, row in rows]
    kinds = {type(value) for value in values}
    if bool in kinds and kinds & {int, float}:  # labels that are 1 here and true there
        values = [int(value) if isinstance(value, bool) else value for value in values]
    if int in kinds and kinds <= {int, bool, type(None)}:
        known = [value for value in values if value is not None]
        if not -(2**63) <= min(known) <= max(known) < 2**63:
            small = min(known) >= 0 and max(known) < 2**64
            return pyarrow.array(
                values if small else [None if v is None else str(v) for v in values],
                pyarrow.uint64() if small else pyarrow.string(),
            )
    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowException, OverflowError) as error:
        known = [(place, row[name]) for place, row in rows if row.get(name) is not None]
        usual = Counter(_shape(value) for _, value in known).most_common(1)[0][0]
        place, odd = next(((place, v) for place, v in known if _shape(v) != usual), known[0])
        raise UserError(
            f"{place}: `{name}` is {str(odd)[:60]}, {_shape(odd)}; in other rows it is {usual}. Give the column values "
            "of one kind."
        ) from error


def _typed(column: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    """Make numbers or booleans of a column of texts, if all of them are; integers of more than 64 bits stay texts."""
    known = compute.if_else(compute.is_in(column, pyarrow.array(MISSING)), None, column)
    whole = compute.all(compute.match_substring_regex(known, r"^\s*[+-]?\d+\s*$")).as_py()
    whole_kinds = (pyarrow.int64(), pyarrow.uint64())
    for kind in whole_kinds if whole else (*whole_kinds, pyarrow.float64(), pyarrow.bool_()):
        with contextlib.suppress(pyarrow.ArrowInvalid):
            return compute.cast(compute.utf8_trim_whitespace(known), kind)
    return column


def _shape(value: Any) -> str:
    """The kind of a value and of what is in it, in words."""
    if isinstance(value, list):
        inside = sorted({_shape(item) for item in value if item is not None})
        return f"a list of {' and '.join(inside)}" if inside else "a list"
    return kind_of(value)
