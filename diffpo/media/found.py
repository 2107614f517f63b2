"""Images that others made, read as media: a folder with captions, or a table of paths and prompts.

    FOLDER/cat.png, FOLDER/cat.txt     the prompt in a text file beside each image (also `.caption`)
    FOLDER/metadata.jsonl              rows, each an image's path within the folder and its prompt; also `.csv`,
                                       `.parquet`, or `.json`: a list of objects, or {path: prompt}
    TABLE.jsonl                        the same rows; paths are relative to the table; also `.csv`, `.tsv`, `.json`,
                                       `.parquet`

Rows may say `seed`, `model`, `prompt_id`, `frames` and `fps` too. A video file has all its frames if its row says
nothing else; an animation (GIF, WebP, PNG) is its first frame unless its row says more. Where a row says no seed it is
unknown; then the n-th images of a prompt meet in a comparison. A model is called like the folder or the table if
nothing says otherwise.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from diffpo.disk.tables import TABLES, read_json, read_rows, read_text
from diffpo.errors import UserError
from diffpo.media.folder import MANIFEST, Media, check_inside, home_of, numbers_of
from diffpo.media.frames import CLIPS, BrokenImage, find_pictures, name_others, open_footage
from diffpo.media.prompt_files import COLUMNS

FILES = ("file_name", "file", "image", "image_path", "path", "filename", "file_path")
"""Where a row's path is looked for, in this order; its prompt: in `prompt_files.COLUMNS`."""
METADATA = tuple(f"metadata.{kind}" for kind in ("jsonl", "csv", "json", "parquet"))
CAPTIONS = (".txt", ".caption")
PROMPTS = f"Every image needs one: a row in {METADATA[0]} (or .csv, .json), or a text file of its name beside it."
_NAMED = 5  # of a list of images, in a message

Row = dict[str, Any]


def find_media(source: Path) -> list[Media]:
    """Read a folder without a manifest, or a table; each image has one prompt, and is there."""
    rows = _rows_of_folder(source) if source.is_dir() else _rows_of_table(source)
    label = source.resolve().name if source.is_dir() else source.stem
    if not rows:
        reason = f"it has no {MANIFEST}, and no image" if source.is_dir() else "it has no rows"
        raise UserError(f"nothing to read in {source}: {reason}. `diffpo generate` makes a media folder.")
    _refuse([row["file"] for row in rows if not row["prompt"].strip()], f"no prompt in {source}", PROMPTS)
    repeated = [file for file, count in Counter(row["file"] for row in rows).items() if count > 1]
    _refuse(repeated, f"more than one row in {source}", "Leave one for each.")
    missing = [row["file"] for row in rows if not (home_of(source) / row["file"]).is_file()]
    _refuse(missing, f"a row in {source}, but no file in {home_of(source)}", "Correct the paths, or remove the rows.")
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(row["prompt"] for row in rows))}
    return [
        Media(
            **{"prompt_id": numbers[row["prompt"]], "seed": None, "model": label} | _length(home_of(source), row) | row
        )
        for row in rows
    ]


def _length(home: Path, row: Row) -> Row:
    """The frames of a video file, and how many of them are shown per second; nothing of pictures and broken files."""
    if Path(row["file"]).suffix.lower() not in CLIPS:
        return {}
    with suppress(BrokenImage), open_footage(home / row["file"]) as footage:
        return {"frames": len(footage.choose()), "fps": footage.timeline.fps}
    return {}


def _rows_of_folder(folder: Path) -> list[Row]:
    images = [str(path.relative_to(folder)) for path in find_pictures(folder)]
    name_others(folder)
    check_inside(folder, images, folder)
    table = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if table is None:
        return [{"file": image, "prompt": caption_beside(folder / image)} for image in images]
    rows = _rows_of_table(table)
    check_inside(folder, (row["file"] for row in rows), table)
    named = {os.path.normpath(row["file"]) for row in rows}
    unnamed = [image for image in images if image not in named]
    _refuse(unnamed, f"no prompt in {table}", PROMPTS)
    return rows


def caption_beside(image: Path) -> str:
    """The text beside an image, empty if there is none."""
    beside = [file for suffix in CAPTIONS if (file := image.with_suffix(suffix)).is_file()]
    return read_text(beside[0]).strip() if beside else ""


def _rows_of_table(path: Path) -> list[Row]:
    if path.suffix not in TABLES:
        raise UserError(
            f"{path}: cannot read images from a {path.suffix or 'nameless'} file; give a folder, or a table of paths "
            f"and prompts ending in {', '.join(TABLES)}."
        )
    if path.suffix == ".json" and isinstance(found := read_json(path), dict):
        return [_row(f"{path}, {file}", {"file": file, "prompt": prompt}) for file, prompt in found.items()]
    return [_row(place, row) for place, row in read_rows(path)]


def _row(place: str, row: Row) -> Row:
    """One row, by our names."""
    file = next((row[name] for name in FILES if isinstance(row.get(name), str) and row[name]), None)
    if file is None:
        raise UserError(
            f"{place} names no image: it needs a path under {', '.join(FILES[:3])} or {FILES[3]}; it has "
            f"{', '.join(map(str, row))}."
        )
    prompt = next((row[name] for name in COLUMNS if isinstance(row.get(name), str)), "")
    model = {"model": str(row["model"])} if row.get("model") not in (None, "") else {}
    return {"file": file, "prompt": prompt, **model, **numbers_of(f"{place} ({file})", row)}


def _refuse(files: Sequence[str], what: str, remedy: str) -> None:
    """Name the images that something is wrong with."""
    if files:
        rest = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
        verb = "has" if len(files) == 1 else "have"
        raise UserError(f"{', '.join(files[:_NAMED])}{rest} {verb} {what}. {remedy}")
