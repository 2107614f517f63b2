"""Labels of segments in files that people read and write.

What `diffpo data segments` writes beside a table has a line for each pair; `label` may be changed by hand, and wins
over `found`, what the labeller said:

    {"pair": "3f...", "row": 0, "prompt": ..., "chosen": ..., "rejected": ...,
     "segments": [{"start": 0.0, "end": 1.0, "label": "first", "found": "tie", "answers": ["first", "tie"]}, ...]}

`first` is the clip that the table which was labelled calls chosen. Labels by hand are such a file, or any table (JSONL,
CSV, ...) whose rows name a pair, by `pair` or by the file names of `chosen` and `rejected`, and its `segments`:

    chosen,rejected,segments
    a-0.mp4,a-1.mp4,first tie second           or numbers: 1 0 -1
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diffpo.captioners.base import Verdict
from diffpo.data.encode import BOTH
from diffpo.data.records import Table
from diffpo.disk.files import write_file
from diffpo.disk.rows import key_at
from diffpo.disk.tables import read_rows
from diffpo.errors import UserError
from diffpo.media.frames import name_of

VALUES: dict[Verdict, int] = {"first": 1, "tie": 0, "second": -1}
"""The labels in words, and as the column `segments` has them."""
_READ = {**{word: word for word in VALUES}, **{str(value): word for word, value in VALUES.items()}, "+1": "first"}
NAMED = 5
"""Pairs that a message names."""


@dataclass(frozen=True)
class Answer:
    """What is known of a pair's segments."""

    found: list[Verdict]
    """What a labeller says, or the labels of a file."""
    corrected: list[Verdict] = field(default_factory=list)
    """What a person has made of it; empty: nothing."""
    raw: Sequence[Any] = ()
    """What a labeller answered, segment by segment; empty: nobody was asked."""
    place: str = ""
    """Where it was read, for messages."""

    @property
    def labels(self) -> list[Verdict]:
        """The labels that count."""
        return self.corrected or self.found


def answers_file(folder: Path, split: str) -> Path:
    """Name the file of a split's answers."""
    return folder / f"{split}.answers.jsonl"


def write_answers(file: Path, table: Table, keys: np.ndarray, answers: Sequence[Answer | None], seconds: float) -> None:
    """Write what is known of each pair of a table, with its labels.

    Args:
        file: Where it goes.
        table: The pairs.
        keys: `[n]` that name the pairs.
        answers: `n`; None: the pair has no labels.
        seconds: Length of a segment.
    """
    lines = []
    for row, answer in enumerate(answers):
        if answer is not None:
            names = {side: name_of(table.cell(row, side)) for side in BOTH}
            line = {"pair": key_at(keys, row).hex(), "row": int(table.origin[row]), "prompt": table.cell(row, "prompt")}
            parts = [_describe(number, answer, seconds) for number in range(len(answer.labels))]
            lines.append(json.dumps(line | names | {"segments": parts}, ensure_ascii=False) + "\n")
    write_file(file, "".join(lines))


def _describe(number: int, answer: Answer, seconds: float) -> dict[str, Any]:
    told: dict[str, Any] = {"start": round(number * seconds, 6), "end": round((number + 1) * seconds, 6)}
    told |= {"label": answer.labels[number], "found": (answer.found + ["tie"] * len(answer.labels))[number]}
    return told | ({"answers": answer.raw[number]} if number < len(answer.raw) else {})


def read_corrections(file: Path, known: Mapping[str, int]) -> dict[str, Answer]:
    """Read the labels that a person has changed in a file of answers, by pair; there need be no file.

    Args:
        file: The file.
        known: The pairs that there are, and their rows.

    Raises:
        UserError: The file is damaged, or a pair whose labels were changed is not there.
    """
    found: dict[str, Answer] = {}
    for place, row in read_rows(file) if file.is_file() else ():
        labels = _labels(row.get("segments"), place)
        said = [part.get("found") for part in row["segments"]]
        if labels != said:
            found[_pair(row, place)] = Answer([], labels, place=place)
    _refuse_strange(file, [answer.place for key, answer in found.items() if key not in known], len(found))
    return found


def read_labels(path: Path, known: Mapping[str, Sequence[Any]]) -> dict[str, Answer]:
    """Read labels by hand, by pair.

    Args:
        path: A file of answers, or a table: see the module.
        known: The pairs that there are, and both clips of each.

    Raises:
        UserError: Something in the file is no label, or it is not clear which pair is meant, or one stands there twice.
    """
    names: dict[tuple[str, ...], list[str]] = {}
    for key, cells in known.items():
        names.setdefault(tuple(Path(name_of(cell)).name for cell in cells), []).append(key)
    found: dict[str, Answer] = {}
    strange = []
    for place, row in read_rows(path):
        key = row.get("pair")
        if not key:
            named = tuple(Path(str(row.get(side) or "")).name for side in BOTH)
            meant = names.get(named, [])
            if not all(named) or len(meant) > 1:
                raise UserError(
                    f"{place} does not say which pair it labels: give `pair`, or file names as `chosen` and `rejected` "
                    f"that no other pair has; it has {', '.join(row)}."
                )
            key = meant[0] if meant else ""
        if key not in known:
            strange.append(place)
        elif key in found:
            raise UserError(f"{place} labels the pair of {found[key].place} a second time: leave one of them.")
        else:
            found[key] = Answer(_labels(row.get("segments"), place), place=place)
    _refuse_strange(path, strange, len(strange) + len(found))
    return found


def _pair(row: Mapping[str, Any], place: str) -> str:
    if not isinstance(row.get("pair"), str):
        raise UserError(f"{place} has no `pair`: take it over from the file that was written, or delete the line.")
    return row["pair"]


def _labels(given: Any, place: str) -> list[Verdict]:
    """Read labels in any of the forms that are allowed."""
    parts = given.replace(",", " ").split() if isinstance(given, str) else given
    parts = [part.get("label") if isinstance(part, dict) else part for part in parts] if isinstance(parts, list) else []
    words = [_READ.get(str(part).strip().lower()) for part in parts]
    if not words or None in words:
        raise UserError(
            f"{place}: `segments` is {str(given)[:100]!r}; it is a list of first, second and tie (or 1, -1 and 0), one "
            "for each segment."
        )
    return [word for word in words if word is not None]


def _refuse_strange(file: Path, places: Sequence[str], total: int) -> None:
    if places:
        more = ", ..." if len(places) > NAMED else ""
        raise UserError(
            f"{len(places)} of {total} labelled pairs of {file} are not in the table "
            f"({', '.join(places[:NAMED])}{more}): the labels are those of other clips or prompts. Give the table that "
            "they were made for, or move the file away."
        )
