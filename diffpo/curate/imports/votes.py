"""Published sets in which people voted between images, or ranked them: the preference is a share of the votes.

HPDv2 (Wu et al., 2023): rankings of the images of a prompt, as pairs.

    train.json   {"prompt", "file_path": [a, b], "human_preference": [1, 0]}         1: preferred; equal: a tie
    test.json    {"prompt", "image_path": [k], "rank": [k], "raw_annotations": [{"rank": [k], "user_hash"}, ...]}

A smaller rank is better. A row with k images makes k (k - 1) / 2 pairs; with `raw_annotations` the preference for an
image over another one is the share of the annotators who ranked it better, equal ranks counting half, else it follows
`rank`. The images of `train.json` lie beside it or in `train/`, those of `test.json` beside it or in `test/`.

open-image-preferences (data-is-better-together, 2024) with its votes, and Rapidata's sets of the same kind.

    image_1, image_2, prompt      at the top, or inside a column `images`; embedded, a path, or an address on the Hub
    preference.responses          one word per annotator: image_1, image_2, or anything else for a tie
    image1, image2, votes_image1, votes_image2      Rapidata's names; the votes are counts

Nothing is downloaded: of an address on the Hub, `https://.../resolve/main/FOLDER/NAME.jpg`, only `FOLDER/NAME.jpg` is
taken, and looked for in the folder of the table and the one above it. The binarized versions of these sets have TRL's
columns: `data.name=pairs` reads them as they are.
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import datasets

from diffpo.curate.imports.pairs import (
    PART_PAIRS,
    ImportedPair,
    Inventory,
    Part,
    Side,
    first_record,
    identity_of,
    inventory_of,
)
from diffpo.data.read import read_table
from diffpo.disk.ahead import groups
from diffpo.disk.tables import read_rows
from diffpo.errors import UserError

IMAGES = ("file_path", "image_path")
HUB_ADDRESS = re.compile(r"https?://.+?/resolve/[^/]+/(?P<path>[^?]+)")
RESPONSES = "preference.responses"
NAMINGS = (("image_1", "image_2"), ("image1", "image2"))


def fits_hpdv2(source: str) -> bool:
    """Whether a JSON list looks like one of HPDv2's."""
    found = set(first_record(source))
    return bool(found & set(IMAGES)) and "prompt" in found and bool(found & {"human_preference", "rank"})


def read_hpdv2(source: str) -> Inventory:
    """Make pairs of every row."""
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
    # One ranking per annotator if they are listed, else the only one there is; a smaller number is better.
    rankings = [annotation["rank"] for annotation in row.get("raw_annotations") or [] if annotation.get("rank")]
    if not rankings and row.get("rank"):
        rankings = [row["rank"]]
    elif not rankings and row.get("human_preference"):
        rankings = [[-label for label in row["human_preference"]]]
    if any(len(ranks) != len(images) for ranks in rankings):
        raise UserError(f"{name} has {len(images)} images, and a ranking of {[len(ranks) for ranks in rankings]}.")
    for a, b in combinations(range(len(images)), 2):
        votes = [0.5 if ranks[a] == ranks[b] else float(ranks[a] < ranks[b]) for ranks in rankings]
        sides = Side(root / images[a], images[a]), Side(root / images[b], images[b])
        preference = sum(votes) / len(votes) if votes else None
        yield ImportedPair(name, row.get("prompt"), sides, preference, None if user is None else str(user))


def fits_open_image_preferences(source: str) -> bool:
    """Whether a table has these columns."""
    try:
        names = read_table(source, "train", ()).rows.column_names
    except UserError:
        return False
    votes = RESPONSES in names or {"votes_image1", "votes_image2"} <= set(names)
    return votes and ("images" in names or any(set(naming) <= set(names) for naming in NAMINGS))


def read_open_image_preferences(source: str) -> Inventory:
    """Read the table's rows in parts."""
    table, given = read_table(source, "train", ()), Path(source).expanduser().absolute()
    rows, root = table.rows, given if given.is_dir() else given.parent
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return Inventory(
        [
            Part(identity_of(table.fingerprint, str(some[0])), partial(_read_rows, rows, some, root))
            for some in groups(range(len(rows)), PART_PAIRS)
        ]
    )


def _read_rows(rows: datasets.Dataset, numbers: list[int], root: Path) -> Iterator[ImportedPair]:
    for number in numbers:
        row, name = rows[number], f"row {number}"
        nested = row["images"] if isinstance(row.get("images"), dict) else {}
        fields = row | {key: value for key, value in nested.items() if value is not None}
        naming = next(naming for naming in NAMINGS if set(naming) <= set(fields))
        first, second = (Side(_locate(fields[key], root), f"{key} of {name}") for key in naming)
        prompt = fields.get("prompt")
        yield ImportedPair(name, prompt if isinstance(prompt, str) else None, (first, second), _share(row))


def _share(row: dict[str, Any]) -> float | None:
    """The first image's share of the votes; votes for neither count half. None without votes."""
    if row.get(RESPONSES) is not None:
        states = row.get(f"{RESPONSES}.status") or ["submitted"] * len(row[RESPONSES])
        words = [word for word, state in zip(row[RESPONSES], states, strict=True) if state == "submitted"]
        votes = [{"image_1": 1.0, "image_2": 0.0}.get(word, 0.5) for word in words]
        return sum(votes) / len(votes) if votes else None
    first, second = row.get("votes_image1") or 0, row.get("votes_image2") or 0
    return first / (first + second) if first + second else None


def _locate(cell: Any, root: Path) -> Any:
    if not isinstance(cell, str):
        return cell
    address = HUB_ADDRESS.fullmatch(cell)
    name = address["path"] if address else cell
    return next((place / name for place in (root, root.parent) if (place / name).is_file()), root / name)
