"""Prompt sets: a file, or a set known by name. Their hash is stored with every result.

A named set is one line in `NAMED`: a function from the part behind the colon to its prompts.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffpo.errors import UserError

COLUMNS = ("prompt", "caption", "text", "Prompt")
"""Where a table's prompts are looked for, in this order."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts in a fixed order, each once. A prompt that came twice would count twice in every interval."""

    name: str
    prompts: tuple[str, ...]

    @staticmethod
    def of(prompts: Iterable[str], name: str = "given") -> PromptSet:
        """Drop repeated prompts, keep the order."""
        return PromptSet(name, tuple(dict.fromkeys(prompts)))

    @property
    def hash(self) -> str:
        """Identity of the prompts and their order; the name does not matter."""
        return hashlib.blake2b(json.dumps(self.prompts).encode(), digest_size=8).hexdigest()

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.prompts)


def load_prompts(spec: str | Path) -> PromptSet:
    """Load a prompt set.

    Args:
        spec: A file (`.txt` with one prompt a line; `.json`, `.jsonl`, `.csv`, `.tsv` or `.parquet` with a column
            `prompt`, `caption` or `text`; a JSON list of strings), or a name such as `shapes:heldout` or
            `shapes:heldout:200` (the first 200).

    Raises:
        UserError: If there is no such file or set, or it holds no prompt.
    """
    name = str(spec)
    if Path(name).suffix in READERS or Path(name).is_file():
        prompts = _read_file(Path(name).expanduser())
    else:
        prompts = _named(name)
    prompts = [prompt for prompt in prompts if prompt.strip()]
    if not prompts:
        raise UserError(f"{name} holds no prompt.")
    return PromptSet.of(prompts, Path(name).name if Path(name).suffix in READERS else name)


def _named(name: str) -> Sequence[str]:
    family, _, rest = name.partition(":")
    if family in NAMED:
        return NAMED[family](rest)
    known = [*(f"{key}:..." for key in NAMED), f"a file ending in {', '.join(READERS)}"]
    close = difflib.get_close_matches(family, NAMED, n=1)
    hint = f" Did you mean {close[0]}:{rest or 'heldout'}?" if close else ""
    raise UserError(f"unknown prompt set {name!r}.{hint} There are {'; '.join(known)}.")


def _shapes(rest: str) -> Sequence[str]:
    """`SPLIT` or `SPLIT:N`."""
    from diffpo.shapes.scenes import SPLITS, sample_prompts, split_captions

    split, _, count = rest.partition(":")
    if split not in SPLITS:
        close = difflib.get_close_matches(split, SPLITS, n=1)
        hint = f" Did you mean shapes:{close[0]}?" if close else ""
        raise UserError(
            f"unknown prompt set 'shapes:{rest}'.{hint} There are {', '.join(f'shapes:{s}' for s in SPLITS)}."
        )
    available = split_captions(split)
    if not count:
        return available
    if not count.isdecimal() or not 1 <= int(count) <= len(available):
        raise UserError(f"'shapes:{rest}': the count must be a number from 1 to {len(available)}, got {count!r}.")
    return sample_prompts(split, int(count))


def _read_file(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(f"there is no prompt file {path}.")
    if path.suffix not in READERS:
        raise UserError(
            f"{path}: cannot read prompts from a {path.suffix or 'nameless'} file; use one of {', '.join(READERS)}."
        )
    try:
        return READERS[path.suffix](path)
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as {path.suffix}: {error}") from error


def _read_lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").split("\n")]


def _read_json(path: Path) -> list[str]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, list):
        raise UserError(f"{path} must hold a list of prompts or of objects, got {type(value).__name__}.")
    return [_prompt_of(path, number, item) for number, item in enumerate(value, start=1)]


def _read_jsonl(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").split("\n")
    return [_prompt_of(path, number, json.loads(line)) for number, line in enumerate(lines, start=1) if line.strip()]


def _read_csv(path: Path) -> list[str]:
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        return [_prompt_of(path, number, row) for number, row in enumerate(rows, start=1)]


def _read_parquet(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    names = pq.read_schema(path).names
    column = next((name for name in COLUMNS if name in names), None)
    if column is None:
        raise UserError(f"{path} has no column {', '.join(COLUMNS[:3])}; it has {', '.join(names)}.")
    return [str(value) for value in pq.read_table(path, columns=[column])[column].to_pylist() if value is not None]


def _prompt_of(path: Path, number: int, item: object) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, dict):
        for column in COLUMNS:
            if isinstance(item.get(column), str):
                return item[column]
        raise UserError(
            f"{path}, row {number} has no text under {', '.join(COLUMNS[:3])}; it has {', '.join(map(str, item))}."
        )
    raise UserError(f"{path}, row {number} must be a text or an object, got {item!r}.")


READERS: dict[str, Callable[[Path], list[str]]] = {
    ".txt": _read_lines,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
NAMED: dict[str, Callable[[str], Sequence[str]]] = {"shapes": _shapes}
