"""HPDv2 (Wu et al., 2023): rankings of the images of a prompt, as pairs.

    train.json   {"prompt", "file_path": [a, b], "human_preference": [1, 0]}         1: preferred; equal: a tie
    test.json    {"prompt", "image_path": [k], "rank": [k], "raw_annotations": [{"rank": [k], "user_hash"}, ...]}

A smaller rank is better. A row with k images makes k (k - 1) / 2 pairs; with `raw_annotations` the preference for an
image over another one is the share of the annotators who ranked it better, equal ranks counting half, else it follows
`rank`. The images of `train.json` lie beside it or in `train/`, those of `test.json` beside it or in `test/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from diffpo.curate.imports.pairs import ImportedPair, Inventory, Side, first_record, inventory_of
from diffpo.disk.tables import read_rows
from diffpo.errors import UserError

IMAGES = ("file_path", "image_path")


def fits(source: str) -> bool:
    """Whether a JSON list looks like one of HPDv2's."""
    found = set(first_record(source))
    return bool(found & set(IMAGES)) and "prompt" in found and bool(found & {"human_preference", "rank"})


def read(source: str) -> Inventory:
    """Make pairs of every row.

    Raises:
        UserError: A row does not have as many labels as images.
    """
    path = Path(source).expanduser().absolute()
    rows = [row for _, row in read_rows(path)]
    names = [name for row in rows[:1] for name in _images(row, f"row 0 of {path.name}")]
    inside = path.parent / path.stem
    root = inside if names and not (path.parent / names[0]).is_file() and inside.is_dir() else path.parent
    return inventory_of([pair for i, row in enumerate(rows) for pair in _pairs(row, f"row {i} of {path.name}", root)])


def _images(row: dict[str, Any], name: str) -> Sequence[str]:
    images = next((row[key] for key in IMAGES if isinstance(row.get(key), list)), None)
    if images is None:
        raise UserError(f"{name} has {', '.join(row)}; a row of HPDv2 has {' or '.join(IMAGES)}, a list of images.")
    return images


def _pairs(row: dict[str, Any], name: str, root: Path) -> Iterator[ImportedPair]:
    images, user = _images(row, name), row.get("user_hash")
    rankings = _rankings(row)
    if any(len(ranks) != len(images) for ranks in rankings):
        raise UserError(f"{name} has {len(images)} images, and a ranking of {[len(ranks) for ranks in rankings]}.")
    for a, b in combinations(range(len(images)), 2):
        votes = [0.5 if ranks[a] == ranks[b] else float(ranks[a] < ranks[b]) for ranks in rankings]
        sides = Side(root / images[a], images[a]), Side(root / images[b], images[b])
        preference = sum(votes) / len(votes) if votes else None
        yield ImportedPair(name, row.get("prompt"), sides, preference, None if user is None else str(user))


def _rankings(row: dict[str, Any]) -> list[Sequence[float]]:
    """One ranking per annotator if they are listed, else the only one there is; a smaller number is better."""
    raw = [annotation["rank"] for annotation in row.get("raw_annotations") or [] if annotation.get("rank")]
    if raw:
        return raw
    if row.get("rank"):
        return [row["rank"]]
    return [[-label for label in row["human_preference"]]] if row.get("human_preference") else []
