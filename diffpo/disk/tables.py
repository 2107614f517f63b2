"""Tables and texts that others wrote: the one place that reads them.

    text = read_text(path)                        a whole file; `decode_text` takes bytes
    for place, row in read_rows(path): ...        a table of any kind in `TABLES`; `place` is "FILE, line 7"

Text is UTF-8 with or without a byte order mark, or UTF-16 with one. Nothing is guessed and nothing is replaced: another
encoding, an unclosed quote, a column that comes twice, a row that is longer than the header, or a character that
stands for one that was lost is refused, with the file and the row.
"""

import codecs
import contextlib
import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

import pyarrow
from pyarrow import parquet, types

from diffpo.errors import UserError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLES = (".parquet", ".jsonl", ".csv", ".tsv", ".json")
"""Suffixes of the tables that can be read."""
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


def hash_file(path: Path) -> bytes:
    """Hash the bytes of a file.

    Raises:
        UserError: It is no file.
    """
    with _reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, hashlib.blake2b).digest()


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
                raise UserError(f"{path} must hold a list of rows, got {kind_of(entries)}.")
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
            raise UserError(f"{place} is {kind_of(entry)}; a row is an object, with the names of the columns.")
        yield place, entry


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
        refuse_twins(path, filter(None, names))
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
    with parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        refuse_twins(path, schema.names)
        wanted, number = [field.name for field in schema if not _holds_bytes(field.type)], 0
        for batch in file.iter_batches(columns=wanted):
            for row in batch.to_pylist():
                number += 1
                place = f"{path}, row {number}"
                yield place, _clean_values(row, place)


def _holds_bytes(kind: pyarrow.DataType) -> bool:
    if types.is_struct(kind):
        return any(_holds_bytes(field.type) for field in kind)
    return types.is_binary(kind) or types.is_large_binary(kind)


def kind_of(value: Any) -> str:
    """The kind of a value, in words."""
    return "missing" if value is None else KINDS.get(type(value), f"a {type(value).__name__}")


def refuse_twins(path: Path, names: Iterable[str]) -> None:
    """Refuse a table at `path` whose columns are not all of different names."""
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"{path} has the column {name!r} twice: give each column a name of its own.")
