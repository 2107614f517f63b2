"""What an importer makes of a layout, whatever it is: pairs of images, read in parts.

A part is what becomes one file of the table, and what a kill costs at most.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffpo.disk.ahead import groups
from diffpo.disk.files import hash_of
from diffpo.disk.tables import UTF16, read_text
from diffpo.errors import UserError

PART_PAIRS = 256
"""A part has so many pairs, where a layout does not come in parts of its own."""
NAMINGS = (("chosen", "rejected"), ("jpg_0", "jpg_1"), ("image_0", "image_1"))
"""How the two images are called: by TRL, by Pick-a-Pic, in lists of pairs."""
PROMPTS = ("prompt", "caption", "original_prompt")
"""How the prompt of a pair is called."""


@dataclass(frozen=True)
class Side:
    """One of the two images of a pair."""

    image: Any
    """Bytes, a path, an image cell of `datasets`; None if it is missing."""
    name: str
    """How messages call it."""
    prompt: str | None = None
    """Its own caption, where it has one."""
    seed: int | None = None


@dataclass(frozen=True)
class ImportedPair:
    """Two images of one prompt, and which of them was preferred."""

    name: str
    """How messages call it."""
    prompt: str | None
    sides: tuple[Side, Side]
    preference: float | None
    """P(the first image is preferred): 1, 0, 0.5 for a tie, or a share of votes; None if nobody chose."""
    user_id: str | None = None

    def __post_init__(self) -> None:
        if self.preference is not None and not 0 <= self.preference <= 1:
            raise UserError(f"{self.name}: the preference is {self.preference}; allowed are numbers from 0 to 1.")

    @property
    def ordered(self) -> tuple[Side, ...]:
        """The sides, the preferred one first; as they come if neither is."""
        return self.sides[::-1] if self.preference is not None and self.preference < 0.5 else self.sides

    @property
    def optional(self) -> dict[str, Any]:
        """What it says beyond prompt, images and preference, by the columns of `records.OPTIONAL`."""
        values: dict[str, Any] = {"user_id": self.user_id}
        for name, side in zip(("chosen", "rejected"), self.ordered, strict=True):
            values |= {f"{name}_prompt": side.prompt, f"{name}_seed": side.seed}
        return {column: value for column, value in values.items() if value is not None}


@dataclass(frozen=True)
class Part:
    """Pairs that become one file of the table."""

    identity: str
    """Changes whenever its pairs may have changed."""
    read: Callable[[], Iterable[ImportedPair]]


@dataclass(frozen=True)
class Inventory:
    """What a source holds."""

    parts: list[Part]
    columns: tuple[str, ...] = ()
    """The columns of `records.OPTIONAL` that the pairs fill, besides `preference`."""
    unpaired: Sequence[str] = field(default_factory=list)
    """Images that have no other one to be compared with."""


def inventory_of(pairs: Sequence[ImportedPair], unpaired: Sequence[str] = ()) -> Inventory:
    """Divide pairs that lie in memory (their images do not) into parts."""
    parts = [Part(identity_of(repr(group)), group.__iter__) for group in groups(pairs, PART_PAIRS)]
    return Inventory(parts, filled_columns(pairs), list(unpaired))


def identity_of(*words: str) -> str:
    """Hash whatever decides a part's pairs."""
    return hash_of("\n".join(words), 16)


def filled_columns(pairs: Iterable[ImportedPair]) -> tuple[str, ...]:
    """Optional columns that at least one pair fills."""
    return tuple(sorted({name for pair in pairs for name in pair.optional}))


def from_fields(name: str, fields: Mapping[str, Any], locate: Callable[[str], Any] = lambda path: path) -> ImportedPair:
    """Read a pair from named values, in any of `NAMINGS`; `locate` turns a path into what can be read."""
    naming = next((names for names in NAMINGS if set(names) & set(fields)), None)
    if naming is None:
        expected = ", or ".join(" and ".join(names) for names in NAMINGS)
        raise UserError(f"{name} has {', '.join(fields) or 'nothing'}; a pair has {expected}.")
    numbered, sides = naming != NAMINGS[0], []
    for i, key in enumerate(naming):
        prompt, seed = (f"caption_{i}", f"seed_{i}") if numbered else (f"{key}_prompt", f"{key}_seed")
        cell, number = fields.get(key), _number(fields.get(seed), f"{name}: the seed")
        image = locate(cell) if isinstance(cell, str) else cell
        sides.append(Side(image, f"{key} of {name}", fields.get(prompt), None if number is None else int(number)))
    label = _label(name, fields) if numbered else _number(fields.get("preference", 1), f"{name}: preference")
    own = sides[label is not None and label < 0.5].prompt
    prompt = next((fields[key] for key in PROMPTS if fields.get(key) is not None), own)
    user = fields.get("user_id")
    return ImportedPair(name, prompt, (sides[0], sides[1]), label, None if user is None else str(user))


def _label(name: str, fields: Mapping[str, Any]) -> float | None:
    """P(image 0 is preferred) from Pick-a-Pic's labels, or from which of two numbers is larger."""
    if str(fields.get("has_label", True)).lower() in ("false", "0", "0.0"):
        return None
    label, other, first, second = (
        _number(fields.get(key), f"{name}: {key}") for key in ("label_0", "label_1", "pref_0", "pref_1")
    )
    if label is not None or other is not None:
        return label if label is not None else 1 - other
    if first is None or second is None:
        return None
    return 0.5 if first == second else float(first > second)


def _number(value: Any, what: str) -> float | None:
    """Read a number; NaN, null and an empty text are missing ones."""
    try:
        number = math.nan if value in (None, "") else float(value)
        return None if math.isnan(number) else number
    except (TypeError, ValueError):
        raise UserError(f"{what} is {value!r}; it must be a number.") from None


def first_record(source: str) -> dict[str, Any]:
    """Read the first object of a JSON list without reading the rest of a large file; empty if it is none."""
    path = Path(source).expanduser()
    if path.suffix != ".json" or not path.is_file():
        return {}
    with path.open("rb") as file:
        start = file.read(1 << 20)
    try:
        text = start.decode("utf-16" if start.startswith(UTF16) else "utf-8-sig", "ignore")
        record, _ = json.JSONDecoder().raw_decode(text.lstrip().removeprefix("[").lstrip())
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def read_caption(*stems: Path) -> str | None:
    """Read the caption beside an image: the first of `stem.txt` and `stem.caption` that is there."""
    files = (stem.with_name(stem.name + suffix) for stem in stems for suffix in (".txt", ".caption"))
    return next((read_text(file).strip() for file in files if file.is_file()), None)
