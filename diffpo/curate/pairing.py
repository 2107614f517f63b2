"""Decide which images of a prompt make a pair, and which of the two is better: by scores, or by what people chose.

By scores, `best-worst` lets the image with the highest score meet the one with the lowest: one pair per prompt. `all`
lets every two images of a prompt meet. Two images whose scores are equal, or differ by less than the margin, are a tie.

By people: a table, usually CSV, with one line per choice.

    prompt_id,file_0,file_1,choice,user_id
    0,base/000000-s0.png,tuned/000000-s0.png,1,ada
    0,base/000000-s0.png,base/000000-s1.png,tie,ben

file_0, file_1   as in the manifests; `FOLDER/FILE`, the folder's name or path, where several folders have such a file
choice           0 or 1: which one was preferred; or `tie`
prompt_id        or `prompt`: may be left out; where it stands it is checked against the manifests
user_id          may be left out
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from diffpo.core.block import Block, NotNegative
from diffpo.disk.tables import read_rows
from diffpo.errors import UserError
from diffpo.media.folder import Media

NEEDED = ("file_0", "file_1", "choice")
ALLOWED = (*NEEDED, "prompt_id", "prompt", "user_id")


@dataclass(frozen=True)
class Candidate:
    """An image that may become a side of a pair."""

    folder: Path
    media: Media
    score: float | None = None
    """It decides the pairs; it is None where people do."""


@dataclass(frozen=True)
class Judged:
    """Two images of the same prompt, the better one first."""

    chosen: Candidate
    rejected: Candidate
    tie: bool
    """Whether neither is better; then they stand in the order of the candidates, or of the table of choices."""
    user_id: str | None = None
    """The person who chose."""


@dataclass(frozen=True, kw_only=True)
class Pairing(Block):
    """How scores become pairs."""

    strategy: Literal["best-worst", "all"] = "best-worst"
    """Whether a prompt gives one pair, or every two of its images make one."""
    margin: NotNegative = 0.0
    """Scores that differ by less are a tie."""

    def pair(self, candidates: Iterable[Candidate]) -> list[Judged]:
        """Make pairs of scored candidates, prompt by prompt in the order in which the prompts first come."""
        judged = []
        for group in by_prompt(candidates).values():
            scores = [candidate.score for candidate in group]
            # Of equally good ones the first is the best, of equally bad ones the last is the worst.
            best, worst = scores.index(max(scores)), len(scores) - 1 - scores[::-1].index(min(scores))
            ends = [(best, worst)] if len(group) > 1 else []
            for i, j in combinations(range(len(group)), 2) if self.strategy == "all" else ends:
                tie = scores[i] == scores[j] or abs(scores[i] - scores[j]) < self.margin
                better, other = (j, i) if scores[i] < scores[j] and not tie else (i, j)
                judged.append(Judged(group[better], group[other], tie))
        return judged


def by_prompt(candidates: Iterable[Candidate]) -> dict[str, list[Candidate]]:
    """Group candidates by the text of their prompt, whatever folder they are in."""
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.media.prompt, []).append(candidate)
    return groups


def read_choices(file: Path, candidates: Sequence[Candidate]) -> list[Judged]:
    """Read a table of choices, in its order."""
    named: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        folder, name = candidate.folder, candidate.media.file
        ways = (name, f"{folder.resolve().name}/{name}", str(folder / name), str((folder / name).resolve()))
        for way in dict.fromkeys(ways):
            named.setdefault(way, []).append(candidate)
    judged = [_read_line(place, row, named) for place, row in read_rows(file)]
    if not judged:
        raise UserError(f"{file} lists no choice.")
    return judged


def _read_line(where: str, row: Mapping[str, Any], named: Mapping[str, list[Candidate]]) -> Judged:
    if not set(NEEDED) <= row.keys() <= set(ALLOWED):
        raise UserError(
            f"{where} has the columns {', '.join(row) or 'none'}; needed are {', '.join(NEEDED)}, allowed are also "
            "prompt_id, prompt and user_id."
        )
    cells = {name: "" if value is None else str(value).strip() for name, value in row.items()}
    choice = cells["choice"].lower()
    if choice not in ("0", "1", "tie"):
        raise UserError(f"{where}: choice is {cells['choice']!r}; allowed are 0, 1 (which file was preferred) and tie.")
    first, second = two = [_find(where, cells[name], named) for name in ("file_0", "file_1")]
    if first is second:
        raise UserError(f"{where} compares {cells['file_0']} with itself.")
    if first.media.prompt != second.media.prompt:
        raise UserError(
            f"{where} compares images of two prompts: {first.media.prompt[:60]!r} and {second.media.prompt[:60]!r}."
        )
    for name in ("prompt_id", "prompt"):
        actual = {str(getattr(candidate.media, name)).strip() for candidate in two}
        if cells.get(name) and cells[name] not in actual:
            raise UserError(f"{where}: {name} is {cells[name]!r}, but that of these images is {sorted(actual)}.")
    chosen, rejected = two[::-1] if choice == "1" else two
    return Judged(chosen, rejected, choice == "tie", cells.get("user_id") or None)


def _find(where: str, name: str, named: Mapping[str, list[Candidate]]) -> Candidate:
    found = named.get(name) or named.get(str(Path(name))) or []
    if not found:
        raise UserError(f"{where}: no manifest of the folders given names {name!r}.")
    if len(found) > 1:
        folders = ", ".join(str(candidate.folder) for candidate in found)
        raise UserError(f"{where}: {name!r} is in several folders ({folders}): write FOLDER/{name}.")
    return found[0]
