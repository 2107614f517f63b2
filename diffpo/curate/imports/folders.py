"""Pairs that are files in folders, in the layouts that users of trainers for images have agreed on.

    twin folders    SOURCE/w/cat.png, SOURCE/l/cat.png               also win/lose, chosen/rejected; also deeper down
                    SOURCE/w/cat/*.png, SOURCE/l/cat/*.png           frames of clips, where `cat` has a caption: cat.txt
    suffixes        cat_w.png, cat_l.png                             w was preferred, l was not
                    cat_0_w.png, cat_1_l.png, cat_2_l.png            each w against each l of the same name
                    cat_0_e.png, cat_1_e.png                         even: a tie
    JSON list       [{"image_0": "a.png", "pref_0": -1, "image_1": "b.png", "pref_1": 1}]     the larger is preferred

Captions stand beside an image in `NAME.txt` or `NAME.caption`; with twin folders also one folder up, with suffixes also
under the name without its suffix. If the two images have different ones, both are kept, and the prompt is that of the
preferred image.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path

from diffpo.curate.imports.pairs import (
    PROMPTS,
    ImportedPair,
    Inventory,
    Side,
    first_record,
    from_fields,
    inventory_of,
    read_caption,
)
from diffpo.disk.tables import is_hidden, read_rows
from diffpo.errors import UserError
from diffpo.media.frames import find_pictures

TWINS = (("w", "l"), ("win", "lose"), ("chosen", "rejected"))
MARKED = re.compile(r"(?P<stem>.+)_(?P<mark>[wle])")
NUMBERED = re.compile(r"(?P<stem>.+)_\d+")
LIST_FIELDS = {"image_0", "image_1", "pref_0", "pref_1"}

Marks = dict[str, list[Path]]
"""Images by their suffix."""


def fits_twins(source: str) -> bool:
    """Whether two folders with such names lie side by side somewhere below."""
    return bool(_twin_folders(Path(source).expanduser()))


def read_twins(source: str) -> Inventory:
    """Pair the images that have one name in both folders."""
    root = Path(source).expanduser().absolute()
    pairs, unpaired = [], []
    for folders in _twin_folders(root):
        first, second = map(_by_name, folders)
        unpaired += [str((first.get(name) or second[name]).relative_to(root)) for name in first.keys() ^ second.keys()]
        for name in (name for name in first if name in second):
            captions = [read_caption(folder / name, folder.parent / name) for folder in folders]
            label = str((folders[0] / name).relative_to(root))
            pairs.append(_pair(label, first[name], second[name], captions, 1.0))
    return inventory_of(pairs, sorted(unpaired))


def _twin_folders(root: Path) -> list[tuple[Path, Path]]:
    if not root.is_dir():
        return []
    below = sorted(path for path in root.rglob("*") if path.is_dir())
    places = [root, *(path for path in below if not is_hidden(path.relative_to(root)))]
    pairs = [(place / first, place / second) for place in places for first, second in TWINS]
    return [(first, second) for first, second in pairs if first.is_dir() and second.is_dir()]


def _by_name(folder: Path) -> dict[str, Path]:
    """Images by their path within the folder, without the suffix; folders of frames by their path."""
    found: dict[str, Path] = {}
    files = find_pictures(folder)
    clips = {place for place in {file.parent for file in files} if _is_clip(place, folder)}
    for file in [*sorted(clips), *(file for file in files if file.parent not in clips)]:
        inside = file.relative_to(folder)
        name = str(inside if file in clips else inside.with_suffix(""))
        if name in found:
            raise UserError(f"{found[name]} and {file} have the same name: which of them is meant? Remove one.")
        found[name] = file
    return found


def _is_clip(place: Path, folder: Path) -> bool:
    """Whether a folder of pictures, in one of two twin folders, has a caption of its own: they are a clip's frames."""
    return place != folder and read_caption(place, folder.parent / place.relative_to(folder)) is not None


def fits_suffixes(source: str) -> bool:
    """Whether images with such suffixes lie below a folder."""
    root = Path(source).expanduser()
    return root.is_dir() and any(MARKED.fullmatch(file.stem) for file in find_pictures(root))


def read_suffixes(source: str) -> Inventory:
    """Pair the images whose names differ in the suffix, and in a number before it, alone."""
    root = Path(source).expanduser().absolute()
    exact: dict[Path, Marks] = defaultdict(lambda: defaultdict(list))
    for file in find_pictures(root):
        if marked := MARKED.fullmatch(file.stem):
            exact[file.parent / marked["stem"]][marked["mark"]].append(file)
    # Where some name has both suffixes, the number before them tells pairs apart: its neighbours are other pairs.
    apart = {_base(stem) for stem, marks in exact.items() if marks.keys() >= {"w", "l"}}
    groups: dict[Path, Marks] = defaultdict(lambda: defaultdict(list))
    for stem, marks in exact.items():
        for mark, files in marks.items():
            groups[stem if _base(stem) in apart else _base(stem)][mark] += files
    pairs = [pair for stem, marks in groups.items() for pair in _marked(stem, marks, root)]
    used = {side.image for pair in pairs for side in pair.sides}
    every = (file for marks in exact.values() for files in marks.values() for file in files)
    return inventory_of(pairs, [str(file.relative_to(root)) for file in every if file not in used])


def _base(stem: Path) -> Path:
    numbered = NUMBERED.fullmatch(stem.name)
    return stem.with_name(numbered["stem"]) if numbered else stem


def _marked(stem: Path, marks: Marks, root: Path) -> Iterator[ImportedPair]:
    judged = [(*two, 1.0) for two in product(marks.get("w", ()), marks.get("l", ()))]
    ties = [(*two, 0.5) for two in combinations(marks.get("e", ()), 2)]
    for first, second, preference in (*judged, *ties):
        captions = [
            read_caption(file.with_suffix(""), file.with_name(file.stem[: -len("_w")]), stem)
            for file in (first, second)
        ]
        yield _pair(str(first.relative_to(root)), first, second, captions, preference)


def _pair(name: str, first: Path, second: Path, captions: list[str | None], preference: float) -> ImportedPair:
    own = captions if _differ(captions) else [None, None]
    sides = Side(first, str(first), own[0]), Side(second, str(second), own[1])
    return ImportedPair(name, captions[0] if captions[0] is not None else captions[1], sides, preference)


def _differ(captions: list[str | None]) -> bool:
    return None not in captions and captions[0] != captions[1]


def fits_list(source: str) -> bool:
    """Whether a JSON list has these fields."""
    return set(first_record(source)) >= LIST_FIELDS


def read_list(source: str) -> Inventory:
    """Read the list; paths are relative to it."""
    path = Path(source).expanduser().absolute()
    pairs = []
    for number, (_, fields) in enumerate(read_rows(path)):
        if not any(fields.get(key) is not None for key in PROMPTS):
            stems = [(path.parent / str(fields.get(f"image_{i}"))).with_suffix("") for i in (0, 1)]
            captions = [read_caption(stem) for stem in stems]
            names = ("caption_0", "caption_1") if _differ(captions) else ("prompt", "prompt")
            fields |= {name: text for name, text in zip(names, captions, strict=True) if text is not None}
        pairs.append(from_fields(f"row {number} of {path.name}", fields, lambda name: path.parent / name))
    return inventory_of(pairs)
