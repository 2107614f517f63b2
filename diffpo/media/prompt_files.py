"""Prompt files: every kind -> records, each a prompt and what else its file says about it (category, style, ...)."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffpo.errors import UserError

COLUMNS = ("prompt", "caption", "text", "Prompt", "prompts", "Prompts")
"""Where a table's prompts are looked for, in this order."""


class PromptRecord(NamedTuple):
    """One prompt of a file."""

    prompt: str
    detail: Mapping[str, Any]
    """The other columns."""


def read_prompt_file(path: Path) -> list[PromptRecord]:
    """Read a file of any kind in `READERS`.

    Raises:
        UserError: If there is none, it is of another kind, or a row of it holds no text.
    """
    if not path.is_file():
        raise UserError(f"there is no prompt file {path}.")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            f"{path}: cannot read prompts from a {path.suffix or 'nameless'} file; use one of {', '.join(READERS)}."
        )
    try:
        return reader(path)
    except UserError:
        raise
    except (ValueError, OSError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as {path.suffix}: {error}") from error


def _read_lines(path: Path) -> list[PromptRecord]:
    return [PromptRecord(line.strip(), {}) for line in path.read_text(encoding="utf-8-sig").split("\n")]


def _read_json(path: Path) -> list[PromptRecord]:
    value = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(value, list):
        raise UserError(f"{path} must hold a list of prompts or of objects, got {type(value).__name__}.")
    return [_record(path, number, item) for number, item in enumerate(value, start=1)]


def _read_jsonl(path: Path) -> list[PromptRecord]:
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    return [_record(path, number, json.loads(line)) for number, line in enumerate(lines, start=1) if line.strip()]


def _read_csv(path: Path) -> list[PromptRecord]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        return [_record(path, number, row) for number, row in enumerate(rows, start=1)]


def _read_parquet(path: Path) -> list[PromptRecord]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    column = next((name for name in COLUMNS if name in schema.names), None)
    if column is None:
        raise UserError(f"{path} has no column {', '.join(COLUMNS[:3])}; it has {', '.join(schema.names)}.")
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_struct)  # images, alone or with their path
    wanted = [field.name for field in schema if not any(is_kind(field.type) for is_kind in binary)]
    rows = pq.read_table(path, columns=wanted).to_pylist()
    return [PromptRecord(str(row.pop(column)), row) for row in rows if row[column] is not None]


def _record(path: Path, number: int, item: object) -> PromptRecord:
    if isinstance(item, str):
        return PromptRecord(item, {})
    if isinstance(item, dict):
        for column in COLUMNS:
            if isinstance(item.get(column), str):
                # csv puts cells beyond the header under None
                return PromptRecord(item[column], {k: v for k, v in item.items() if k not in (column, None)})
        raise UserError(
            f"{path}, row {number} has no text under {', '.join(COLUMNS[:3])}; it has {', '.join(map(str, item))}."
        )
    raise UserError(f"{path}, row {number} must be a text or an object, got {item!r}.")


READERS: dict[str, Callable[[Path], list[PromptRecord]]] = {
    ".txt": _read_lines,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
