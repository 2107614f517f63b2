"""The media folder: what `generate` writes and `score`, `compare`, `grid` and `report` read.

    DIR/manifest.jsonl   one line per image or clip: file, prompt, prompt_id, seed, model; of clips also frames, fps
    DIR/settings.json    how the images were made
    DIR/scores.parquet   added by `score`

A folder without a manifest, or a table, is read as `found` does: images that others made.

Whatever is here under its final name is whole: files are written under another name first and then renamed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffpo.disk.files import write_file, write_json
from diffpo.disk.published import published
from diffpo.disk.tables import read_json, read_rows
from diffpo.errors import UserError
from diffpo.media.frames import BrokenImage, Clip, decode_clip, read_bytes

MANIFEST = "manifest.jsonl"
SETTINGS = "settings.json"
SCORES = "scores.parquet"
LATENTS = ".safetensors"
"""Ending of the file beside a clip that holds the latents which it was decoded from."""
DECODED = "decoded"
"""The one entry of such a file's metadata: the hash of the VAE's files and that of the clip, with a space between."""
LARGEST_SEED = 2**63 - 1
"""What the tables can keep."""


@dataclass(frozen=True, kw_only=True)
class Media:
    """One image or clip of a media folder: a line of its manifest."""

    file: str
    """Path relative to the folder."""
    prompt: str
    prompt_id: int
    """Place of the prompt in its prompt set, from 0."""
    seed: int | None
    """What the image's initial noise was drawn with; None: unknown."""
    model: str
    """Label of the model that made it."""
    frames: int = 1
    """An image is a clip of one frame."""
    fps: float | None = None
    """Frames per second of a clip."""


_NUMBERS: dict[str, tuple[type, float, float]] = {
    "prompt_id": (int, 0, LARGEST_SEED),
    "seed": (int, 0, LARGEST_SEED),
    "frames": (int, 1, 100_000),
    "fps": (float, 0.001, 1000),
}
"""Kind, least and largest value of the numbers of a row."""
_PLACES = ("model", "tuned")
"""Settings that may be paths."""


def read_media(folder: str | Path) -> list[Media]:
    """Read a folder's manifest, in its order; without one, what others made (see `found`), tables included.

    Raises:
        UserError: If there is no such folder or nothing in it, or a line of the manifest is broken, lacks its prompt,
            or points outside the folder.
    """
    from diffpo.media.found import find_media

    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"{folder} is no media folder: there is no such folder. `diffpo generate` makes one.")
    return read_manifest(folder) if (folder / MANIFEST).is_file() else find_media(folder)


def read_manifest(folder: Path) -> list[Media]:
    """Read a folder's manifest, in its order; see `read_media`."""
    path = folder / MANIFEST
    media = [_media(place, row) for place, row in read_rows(path)]
    if not media:
        raise UserError(f"{path} names no image. Run `diffpo generate` again.")
    check_inside(folder, (item.file for item in media), path)
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
    write_file(folder / MANIFEST, "".join(map(manifest_line, media)))


def manifest_line(media: Media) -> str:
    """One line of a manifest, with its line break; what an image has not is left away."""
    said = {key: value for key, value in asdict(media).items() if (key, value) not in (("frames", 1), ("fps", None))}
    return json.dumps(said, ensure_ascii=False) + "\n"


def read_settings(folder: str | Path) -> dict[str, Any]:
    """How a folder's images were made; empty for a folder that `diffpo generate` did not make."""
    path = Path(folder) / SETTINGS
    settings = read_json(path) if path.is_file() else None
    if not isinstance(settings, dict):
        return {}
    there = {name: path.parent / str(settings[name]) for name in _PLACES if settings.get(name)}
    return settings | {name: os.path.normpath(place) for name, place in there.items() if place.exists()}


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write how a folder's images are made; places become relative to the folder, and name no home."""
    places = {name: _seen_from(folder, settings[name]) for name in _PLACES if settings.get(name)}
    write_json(folder / SETTINGS, {**settings, **places})


def _seen_from(folder: Path, place: str) -> str:
    """A place on the disk, relative to a folder; a Hub id, or the name of embedded weights, stays what it is."""
    path, home = Path(place).expanduser().absolute(), Path.home()
    if not path.exists():
        return place
    leaves_home = home in path.parents and not folder.absolute().is_relative_to(home)
    return published(str(path)) if leaves_home else os.path.relpath(path, folder)


def open_clip(folder: str | Path, media: Media) -> Clip:
    """Read all frames that the manifest says, RGB; an image has one.

    Raises:
        UserError: If the file is missing, or broken (`BrokenImage`).
    """
    with _naming(Path(folder) / media.file) as path:
        clip = decode_clip(read_bytes(path), media.frames)
    return Clip(clip.frames, media.fps or clip.fps)


def read_file(folder: str | Path, media: Media) -> bytes:
    """The encoded image.

    Raises:
        UserError: If the file is missing, or no file to read (`BrokenImage`).
    """
    with _naming(Path(folder) / media.file) as path:
        return read_bytes(path)


@contextmanager
def _naming(path: Path) -> Iterator[Path]:
    """Name the file, and what helps, in what is said of one that is broken or missing."""
    remedy = "Put a whole image there, or leave it out."
    if (path.parent / SETTINGS).is_file():
        remedy = "Where it is deleted or missing, `diffpo generate` with the same settings makes it again."
    try:
        yield path
    except BrokenImage as error:
        raise BrokenImage(f"{path} is no readable image: {error}. {remedy}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). {remedy}") from error


def check_inside(folder: Path, files: Iterable[str], where: str | Path) -> None:
    """Refuse files outside a folder, by an absolute path, by `..`, or by a link, with a `UserError`."""
    home = os.path.realpath(folder)
    for file in files:
        if os.path.commonpath([home, os.path.realpath(os.path.join(home, file))]) != home:
            raise UserError(
                f"{where}: {file!r} is not inside the folder {folder}, by its path or by a link. Copy the image into "
                "the folder; a table given by itself may name images anywhere."
            )


def numbers_of(place: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that a row about an image says, in their ranges; what it does not say is left away."""
    found: dict[str, Any] = {}
    for name, (kind, least, most) in _NUMBERS.items():
        value = row.get(name)
        if value is None or value == "" or value != value:
            continue
        with suppress(TypeError, ValueError, OverflowError):
            number = kind(value)
            if least <= number <= most and (isinstance(value, str) or number == value):
                found[name] = number
                continue
        what = "a whole number" if kind is int else "a number"
        raise UserError(f"{place}: {name} is {value!r}; it must be {what} from {least} to {most}.")
    return found


def _media(place: str, row: Mapping[str, Any]) -> Media:
    missing = [name for name in ("file", "prompt", "model", "prompt_id") if row.get(name) is None]
    if missing:
        raise UserError(
            f"{place} ({row.get('file', 'no file name')}) lacks {', '.join(missing)}: every image needs it."
        )
    texts = {name: row[name] for name in ("file", "prompt", "model")}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise UserError(f"{place}: {name} is {text!r}; it must be a text.")
    return Media(**texts, **{"seed": None} | numbers_of(place, row))
