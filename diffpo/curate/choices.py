"""What people chose between generated images: a table, usually CSV, with one line per choice.

    prompt_id,file_0,file_1,choice,user_id
    0,base/000000-s0.png,tuned/000000-s0.png,1,ada
    0,base/000000-s0.png,base/000000-s1.png,tie,ben

file_0, file_1   as in the manifests; `FOLDER/FILE`, the folder's name or path, where several folders have such a file
choice           0 or 1: which one was preferred; or `tie`
prompt_id        or `prompt`: may be left out; where it stands it is checked against the manifests
user_id          may be left out
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffpo.curate.ranking import Candidate, Judged
from diffpo.disk.tables import read_rows
from diffpo.errors import UserError

NEEDED = ("file_0", "file_1", "choice")
ALLOWED = (*NEEDED, "prompt_id", "prompt", "user_id")
CHOICES = ("0", "1", "tie")


def read_choices(file: str | Path, candidates: Sequence[Candidate]) -> list[Judged]:
    """Read a table of choices, in its order.

    Raises:
        UserError: It cannot be read, or names what is not there, or a line contradicts itself or the manifests.
    """
    named = _names(candidates)
    judged = [_read_line(place, row, named) for place, row in read_rows(Path(file))]
    if not judged:
        raise UserError(f"{file} lists no choice.")
    return judged


def _names(candidates: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    """Every way to call an image, and whom it may mean."""
    named: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        folder, file = candidate.folder, candidate.media.file
        for name in dict.fromkeys(
            [file, f"{folder.resolve().name}/{file}", str(folder / file), str((folder / file).resolve())]
        ):
            named.setdefault(name, []).append(candidate)
    return named


def _read_line(where: str, row: Mapping[str, Any], named: Mapping[str, list[Candidate]]) -> Judged:
    missing, unknown = [n for n in NEEDED if n not in row], [n for n in row if n not in ALLOWED]
    if missing or unknown:
        raise UserError(
            f"{where} has the columns {', '.join(row) or 'none'}; needed are {', '.join(NEEDED)}, allowed are also "
            "prompt_id, prompt and user_id."
        )
    cells = {name: "" if value is None else str(value).strip() for name, value in row.items()}
    choice = cells["choice"].lower()
    if choice not in CHOICES:
        raise UserError(f"{where}: choice is {cells['choice']!r}; allowed are 0, 1 (which file was preferred) and tie.")
    first, second = (_find(where, cells[name], named) for name in ("file_0", "file_1"))
    if first is second:
        raise UserError(f"{where} compares {cells['file_0']} with itself.")
    if first.media.prompt != second.media.prompt:
        raise UserError(
            f"{where} compares images of two prompts: {first.media.prompt[:60]!r} and {second.media.prompt[:60]!r}."
        )
    _check_prompt(where, cells, first, second)
    chosen, rejected = (second, first) if choice == "1" else (first, second)
    return Judged(chosen, rejected, choice == "tie", cells.get("user_id") or None)


def _find(where: str, name: str, named: Mapping[str, list[Candidate]]) -> Candidate:
    found = named.get(name) or named.get(str(Path(name))) or []
    if not found:
        raise UserError(f"{where}: no manifest of the folders given names {name!r}.")
    if len(found) > 1:
        folders = ", ".join(str(candidate.folder) for candidate in found)
        raise UserError(f"{where}: {name!r} is in several folders ({folders}): write FOLDER/{name}.")
    return found[0]


def _check_prompt(where: str, cells: Mapping[str, str], first: Candidate, second: Candidate) -> None:
    for name in ("prompt_id", "prompt"):
        actual = {str(getattr(candidate.media, name)).strip() for candidate in (first, second)}
        if cells.get(name) and cells[name] not in actual:
            raise UserError(f"{where}: {name} is {cells[name]!r}, but that of these images is {sorted(actual)}.")
