"""Tables and texts that others wrote: the one place that reads them.

    text = read_text(path)                        a whole file; `decode_text` takes bytes
    for place, row in read_rows(path): ...        a table of any kind in `TABLES`; `place` is "FILE, line 7"
    table = read_columns(path)                    the same rows as Arrow columns

Text is UTF-8 with or without a byte order mark, or UTF-16 with one. Nothing is guessed and nothing is replaced: another
encoding, an unclosed quote, a column that comes twice, a row that is longer than the header, or a character that
stands for one that was lost is refused, with the file and the row.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from diffpo.errors import UserError

if TYPE_CHECKING:
    import pyarrow

DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLES = (".parquet", ".jsonl", ".csv", ".tsv", ".json")
"""Suffixes of the tables that can be read."""
CHUNK_ROWS = 4096
"""Rows that are Python objects at a time, while a text becomes columns."""
MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")
"""What stands for a missing value in a column of numbers of a CSV file."""
LOST = {"\0": "the character NUL", "\ufffd": "the mark U+FFFD, which stands for a character that was lost"}
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
UTF32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
NO_TEXT = re.compile("[\0\ufffd\ud800-\udfff]")
KINDS = {str: "a text", bool: "a boolean", int: "an integer", float: "a number", dict: "an object"}

Row = dict[str, Any]


def read_text(path: Path) -> str:
    """Read a whole file of text, without its byte order mark.

    Raises:
        UserError: It is no file, or holds something that is no text.
    """
    with _reading(path):
        return decode_text(path.read_bytes(), str(path))


def decode_text(content: bytes, place: str) -> str:
    """Read the bytes of a text: UTF-8, or UTF-16 with a byte order mark.

    Raises:
        UserError: They are something else; the message names `place`.
    """
    if content.startswith(UTF32):
        raise UserError(f"{place} is UTF-32. Save it as UTF-8, and use it again.")
    try:
        return clean(content.decode("utf-16" if content.startswith(UTF16) else "utf-8"), place)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{place}, line {line}, is not {error.encoding.upper()}. Save it as UTF-8.") from error


def read_json(path: Path) -> Any:
    """Read a JSON file; see `parse_json`.

    Raises:
        UserError: It is no file, or no JSON.
    """
    return parse_json(read_text(path), str(path))


def parse_json(text: str, place: str) -> Any:
    """Read JSON.

    Raises:
        UserError: It is none, an object in it has a name twice, or a text in it is broken; the message names `place`.
    """
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise UserError(f"{place} is nested too deeply.") from None
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    except ValueError as error:
        raise UserError(f"{place} is not JSON: {error}") from error
    # Only escapes make characters of ASCII that are no text: most lines need no second look.
    return value if text.isascii() and "\\u" not in text else _clean_values(value, place)


def read_items(path: Path) -> Iterator[tuple[str, Any]]:
    """Read the entries of a file, whatever they are: rows, or the values of a list.

    A table in text gives what it holds: the cells of CSV are texts. Columns of a parquet file that hold bytes, such as
    pictures, are left out.

    Args:
        path: A file of one of the kinds in `TABLES`.

    Yields:
        Where an entry stands, for messages, and the entry.

    Raises:
        UserError: The file cannot be read, or is of another kind; the message names the row.
    """
    kind = path.suffix.lower()
    if kind not in TABLES:
        raise UserError(
            f"{path} is no table that can be read: found {kind or 'no suffix'}, allowed {', '.join(TABLES)}."
        )
    with _reading(path):
        if kind in DELIMITERS:
            yield from _read_delimited(path, DELIMITERS[kind])
        elif kind == ".jsonl":
            for number, line in enumerate(_lines(path), 1):
                if line.strip():
                    yield (place := f"{path}, line {number}"), parse_json(line, place)
        elif kind == ".json":
            entries = read_json(path)
            if not isinstance(entries, list):
                raise UserError(f"{path} must hold a list of rows, got {_kind(entries)}.")
            yield from ((f"{path}, row {number}", entry) for number, entry in enumerate(entries, 1))
        else:
            yield from _read_parquet(path)


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Read the rows of a table; see `read_items`.

    Raises:
        UserError: The table cannot be read, or holds something that is no row.
    """
    for place, entry in read_items(path):
        if not isinstance(entry, dict):
            raise UserError(f"{place} is {_kind(entry)}; a row is an object, with the names of the columns.")
        yield place, entry


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
    import pyarrow

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
    import pyarrow

    return pyarrow.concat_tables(parts, promote_options="permissive")


def is_hidden(path: str | PurePath) -> bool:
    """Whether a path within a folder or an archive is hidden: a part of it begins with "." or is `__MACOSX`."""
    parts = (part for part in PurePath(path).parts if part not in (".", ".."))
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def files_below(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """The files of some suffixes, in small letters, anywhere below a folder, sorted; what is hidden is left out."""
    found = (path for path in folder.rglob("*") if path.name.lower().endswith(tuple(suffixes)))
    return sorted(path for path in found if not is_hidden(path.relative_to(folder)) and path.is_file())


def clean(text: str, place: str) -> str:
    """Take byte order marks out of a text, which are invisible.

    Raises:
        UserError: It holds something that no text holds: a lone half of a character, or a mark for a lost one.
    """
    if text.isascii() and "\0" not in text:
        return text
    if found := NO_TEXT.search(text):
        wrong = LOST.get(found[0], "half of a character (a lone surrogate)")
        raise UserError(f"{place} holds {wrong}, in {text[:60]!r}: write the text as UTF-8 again, from its origin.")
    return text.replace("\ufeff", "")


def _clean_values(value: Any, place: str) -> Any:
    """Clean every text in nested values."""
    if isinstance(value, str):
        return clean(value, place)
    if isinstance(value, dict):
        return {name: _clean_values(item, place) for name, item in value.items()}
    return [_clean_values(item, place) for item in value] if isinstance(value, list) else value


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong while reading into a message that names the file."""
    if not path.is_file():
        what = "it is not a plain file" if path.exists() else "there is no such file"
        raise UserError(f"{path} cannot be read: {what}.")
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError, csv.Error) as error:  # the errors of pyarrow are ValueErrors and OSErrors
        raise UserError(f"{path} cannot be read as {path.suffix or 'text'}: {error}") from error


def _lines(path: Path) -> Iterator[str]:
    """Read a text line by line; only a newline ends a line."""
    with path.open("rb") as file:
        head = file.peek(4)
        if head.startswith(UTF16):
            yield from io.StringIO(read_text(path))
            return
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8").removeprefix("\ufeff")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}, line {number}, is not UTF-8. Save the file as UTF-8.") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise UserError(f"the name {twice!r} comes twice in one object.")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _read_delimited(path: Path, delimiter: str) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(2**31 - 1)
    reader, begins = csv.reader(_lines(path), delimiter=delimiter, strict=True), 1
    try:
        names = [clean(name, f"{path}, line 1,") for name in next(reader, [])]
        _refuse_twins(path, filter(None, names))
        for cells in reader:
            place, begins = f"{path}, line {begins + 1}", reader.line_num
            if cells and len(cells) != len(names):
                raise UserError(f"{place} has more or fewer values than the header: {len(cells)}, not {len(names)}.")
            if cells:
                yield place, {name: clean(cell, place) for name, cell in zip(names, cells, strict=True) if name}
    except csv.Error as error:
        why = "a quote is opened that is never closed" if "end of data" in str(error) else error
        raise UserError(f"{path}: the row that begins in line {begins + 1} cannot be read: {why}.") from error


def _read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        _refuse_twins(path, schema.names)
        wanted, number = [field.name for field in schema if not _holds_bytes(field.type)], 0
        for batch in file.iter_batches(columns=wanted):
            for row in batch.to_pylist():
                number += 1
                place = f"{path}, row {number}"
                yield place, _clean_values(row, place)


def _holds_bytes(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(_holds_bytes(field.type) for field in kind)
    return types.is_binary(kind) or types.is_large_binary(kind)


def _column(name: str, rows: Iterable[tuple[str, Row]]) -> pyarrow.Array:
    """Make a column of the values that rows have under a name."""
    import pyarrow

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
    import pyarrow
    from pyarrow import compute

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
    return _kind(value)


def _kind(value: Any) -> str:
    """The kind of a value, in words."""
    return "missing" if value is None else KINDS.get(type(value), f"a {type(value).__name__}")


def _refuse_twins(path: Path, names: Iterable[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"{path} has the column {name!r} twice: give each column a name of its own.")
