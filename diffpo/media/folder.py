"""The media folder: what `generate` writes and `score`, `compare`, `grid` and `report` read.

    DIR/manifest.jsonl   one line per image: file, prompt, prompt_id, seed, model
    DIR/settings.json    how the images were made
    DIR/scores.parquet   added by `score`

A folder without a manifest, or a table, is read as `found_media` does: images that others made.

Whatever is here under its final name is whole: files are written under another name first and then renamed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffpo.disk.files import write_file
from diffpo.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

MANIFEST = "manifest.jsonl"
SETTINGS = "settings.json"
SCORES = "scores.parquet"
_REMEDY = "`diffpo generate` with the same settings makes what is missing."


@dataclass(frozen=True, kw_only=True)
class Media:
    """One image of a media folder: a line of its manifest."""

    file: str
    """Path relative to the folder."""
    prompt: str
    prompt_id: int
    """Place of the prompt in its prompt set, from 0."""
    seed: int
    """What the image's initial noise was drawn with."""
    model: str
    """Label of the model that made it."""


class BrokenImage(UserError):
    """A file that is there and cannot be decoded."""


def read_media(folder: str | Path) -> list[Media]:
    """Read a folder's manifest, in its order; without one, what others made (see `found_media`), tables included.

    Raises:
        UserError: If there is no such folder or nothing in it, or a line of the manifest is broken, lacks its prompt,
            or points outside the folder.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        from diffpo.media.found import find_media

        if not folder.exists():
            raise UserError(f"{folder} is no media folder: there is no such folder. `diffpo generate` makes one.")
        return find_media(folder)
    media = [_parse_line(path, number, line) for number, line in _numbered_lines(path)]
    if not media:
        raise UserError(f"{path} names no image. Run `diffpo generate` again.")
    return media


def home_of(source: str | Path) -> Path:
    """What the files of a media folder, or of a table, are relative to."""
    return Path(source) if Path(source).is_dir() else Path(source).parent


def scores_file(source: str | Path) -> Path:
    """Where the scores of a media folder are: in it; those of a table TABLE.csv beside it, in TABLE.scores.parquet."""
    source = Path(source)
    return source / SCORES if source.is_dir() else source.with_name(f"{source.stem}.{SCORES}")


def write_manifest(folder: Path, media: Iterable[Media]) -> None:
    """Write the whole manifest."""
    write_file(folder / MANIFEST, "".join(map(manifest_line, media)).encode())


def manifest_line(media: Media) -> str:
    """One line of a manifest, with its line break."""
    return json.dumps(asdict(media), ensure_ascii=False) + "\n"


def read_settings(folder: str | Path) -> dict[str, Any]:
    """How a folder's images were made; empty for a folder that `diffpo generate` did not make.

    Raises:
        UserError: If the file is not JSON.
    """
    path = Path(folder) / SETTINGS
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}). Use `--fresh` or another folder.") from error


def open_image(folder: str | Path, media: Media) -> Image:
    """Read one image as RGB, fully decoded.

    Raises:
        UserError: If the file is missing, or broken (`BrokenImage`).
    """
    return decode(read_file(folder, media), Path(folder) / media.file)


def read_file(folder: str | Path, media: Media) -> bytes:
    """The encoded image.

    Raises:
        UserError: If the file is missing.
    """
    path = Path(folder) / media.file
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read, though {MANIFEST} names it ({error.strerror}). {_REMEDY}") from error


def decode(data: bytes, path: Path) -> Image:
    """Decode an image to RGB; `path` is where it came from.

    Raises:
        BrokenImage: If it cannot be.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise BrokenImage(f"{path} is no readable image ({type(error).__name__}). Delete it. {_REMEDY}") from error


def _numbered_lines(path: Path) -> list[tuple[int, str]]:
    lines = path.read_text(encoding="utf-8").split("\n")
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _parse_line(path: Path, number: int, line: str) -> Media:
    try:
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise UserError(f"{path}, line {number} is broken ({error}). Run `diffpo generate` again.") from error
    missing = [key for key in ("file", "prompt", "prompt_id", "seed", "model") if record.get(key) is None]
    if missing:
        raise UserError(
            f"{path}, line {number} ({record.get('file', 'no file name')}) lacks {', '.join(missing)}: "
            "every image needs it."
        )
    file = str(record["file"])
    if Path(file).is_absolute() or ".." in Path(file).parts:
        raise UserError(f"{path}, line {number}: {file!r} is not inside the folder.")
    try:
        prompt_id, seed = int(record["prompt_id"]), int(record["seed"])
    except (TypeError, ValueError):
        raise UserError(f"{path}, line {number}: prompt_id and seed must be integers.") from None
    return Media(file=file, prompt=str(record["prompt"]), prompt_id=prompt_id, seed=seed, model=str(record["model"]))
