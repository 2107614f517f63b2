"""Prompt files: every kind -> records, each a prompt and what else its file says about it (category, style, ...)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffpo.disk.tables import TABLES, read_items, read_text
from diffpo.errors import UserError

log = logging.getLogger(__name__)

COLUMNS = ("prompt", "caption", "text", "Prompt", "prompts", "Prompts")
"""Where a table's prompts are looked for, in this order."""
READERS = (".txt", *TABLES)
"""Suffixes of the files that can be read."""


class PromptRecord(NamedTuple):
    """One prompt of a file."""

    prompt: str
    detail: Mapping[str, Any]
    """The other columns."""


def read_prompt_file(path: Path) -> list[PromptRecord]:
    """Read a file of any kind in `READERS`; rows without a prompt (null) are left out, and counted in the log."""
    if not path.is_file():
        raise UserError(f"there is no prompt file {path}.")
    kind = path.suffix.lower()
    if kind not in READERS:
        raise UserError(
            f"{path}: cannot read prompts from a {kind or 'nameless'} file; use one of {', '.join(READERS)}."
        )
    if kind == ".txt":
        return [PromptRecord(line.strip(), {}) for line in read_text(path).split("\n")]
    records = [_record(place, item) for place, item in read_items(path)]
    found = [record for record in records if record is not None]
    if len(found) < len(records):
        log.warning(f"{path}: {len(records) - len(found)} of {len(records)} rows have no prompt, and are left out.")
    return found


def _record(place: str, item: object) -> PromptRecord | None:
    if isinstance(item, str):
        return PromptRecord(item, {})
    if not isinstance(item, dict):
        raise UserError(f"{place} must be a text or an object, got {item!r}.")
    column = next((name for name in COLUMNS if name in item), None)
    if column is None:
        raise UserError(f"{place} has no text under {', '.join(COLUMNS[:3])}; it has {', '.join(map(str, item))}.")
    prompt = item[column]
    if prompt is not None and not isinstance(prompt, str):
        raise UserError(
            f"{place}: `{column}` must be a text, got {type(prompt).__name__}: {str(prompt)[:80]}. Write the text "
            "itself into the column."
        )
    return prompt if prompt is None else PromptRecord(prompt, {k: v for k, v in item.items() if k != column})
