"""open-image-preferences (data-is-better-together, 2024) with its votes, and Rapidata's sets of the same kind.

    image_1, image_2, prompt      at the top, or inside a column `images`; embedded, a path, or an address on the Hub
    preference.responses          one word per annotator: image_1, image_2, or anything else for a tie
    image1, image2, votes_image1, votes_image2      Rapidata's names; the votes are counts

Nothing is downloaded: of an address on the Hub, `https://.../resolve/main/FOLDER/NAME.jpg`, only `FOLDER/NAME.jpg` is
taken, and looked for in the folder of the table and the one above it. The binarized versions of these sets have TRL's
columns: `data.name=pairs` reads them as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffpo.curate.imports.pairs import PART_PAIRS, ImportedPair, Inventory, Part, Side, identity_of
from diffpo.data.read import read_table
from diffpo.disk.ahead import groups
from diffpo.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

HUB_ADDRESS = re.compile(r"https?://.+?/resolve/[^/]+/(?P<path>[^?]+)")
RESPONSES = "preference.responses"
NAMINGS = (("image_1", "image_2"), ("image1", "image2"))


def fits(source: str) -> bool:
    """Whether a table has these columns."""
    try:
        names = read_table(source, "train", ()).rows.column_names
    except UserError:
        return False
    votes = RESPONSES in names or {"votes_image1", "votes_image2"} <= set(names)
    return votes and ("images" in names or any(set(naming) <= set(names) for naming in NAMINGS))


def read(source: str) -> Inventory:
    """Read the table's rows in parts.

    Raises:
        UserError: It cannot be read.
    """
    import datasets

    table, given = read_table(source, "train", ()), Path(source).expanduser().absolute()
    rows, root = table.rows, given if given.is_dir() else given.parent
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return Inventory(
        [
            Part(identity_of(table.fingerprint, str(some[0])), partial(_read, rows, some, root))
            for some in groups(range(len(rows)), PART_PAIRS)
        ]
    )


def _read(rows: Dataset, numbers: list[int], root: Path) -> Iterator[ImportedPair]:
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
