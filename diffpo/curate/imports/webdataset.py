"""Pairs in webdataset tars: the files of a pair follow each other, and share their name up to the first dot.

    000.chosen.jpg  000.rejected.jpg  000.json or 000.txt             the JSON's keys are TRL's columns
    000.jpg_0.jpg   000.jpg_1.jpg     000.label_0.txt  000.original_prompt.txt  ...          Pick-a-Pic's columns

What follows the first dot, without its suffix, names the value; `000.txt` is the prompt, and the keys of `000.json` are
named values too. A tar is read from its beginning to its end and nothing is ever written under a name that it holds.
"""

import glob
import gzip
import os
import re
import tarfile
from collections.abc import Iterator
from functools import partial
from itertools import chain, groupby, islice
from pathlib import Path
from typing import IO, Any

from diffpo.curate.imports.pairs import ImportedPair, Inventory, Part, filled_columns, from_fields, identity_of
from diffpo.disk.tables import decode_text, files_below, is_hidden, parse_json
from diffpo.errors import UserError
from diffpo.media.bounds import LARGEST_FILE
from diffpo.media.frames import ARRAYS, SUFFIXES

TARS = (".tar", ".tar.gz", ".tgz")
KEYED = re.compile(r"(?P<key>(?:.*/)?[^/.]+)\.(?P<field>[^/]+)")
BLOCK = 512
"""A tar is made of blocks of so many bytes."""
LOOKED_AT = 100
"""So many pairs at the beginning decide which optional columns the table gets."""


def fits(source: str) -> bool:
    """Whether there are tars."""
    return bool(_tars(source))


def read(source: str) -> Inventory:
    """Make a part of every tar."""
    parts = []
    for path in _tars(source):
        stat = path.stat()
        identity = identity_of(path.name, str(stat.st_size), str(stat.st_mtime_ns))
        parts.append(Part(identity, partial(_read, path)))
    looked_at = islice(chain.from_iterable(part.read() for part in parts), LOOKED_AT)
    return Inventory(parts, filled_columns(looked_at))


def _tars(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_dir():
        return files_below(path, TARS)
    found = [path] if path.exists() else map(Path, glob.glob(str(path), recursive=True))
    return sorted(file for file in found if file.name.lower().endswith(TARS) and file.is_file())


def _read(path: Path) -> Iterator[ImportedPair]:
    for key, files in groupby(_files(path), lambda file: file[0]):
        fields = {}
        for _, name, values in files:
            if twice := values.keys() & fields.keys():
                raise UserError(f"{name} gives {', '.join(sorted(twice))} a second time.")
            fields |= values
        yield from_fields(f"{key} of {path.name}", fields)


def _files(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the key, the name and the values of one file after the other."""
    try:
        with _open(path) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                name, named = f"{member.name} of {path.name}", KEYED.fullmatch(member.name)
                if named is None or not member.isfile() or is_hidden(member.name):
                    continue
                if Path(named["key"]).name.startswith("__"):
                    continue  # webdataset's own notes
                if member.size > LARGEST_FILE:
                    size, most = f"{member.size / 2**20:.0f}", LARGEST_FILE // 2**20
                    raise UserError(f"{name} has {size} MB; at most {most} are read. Leave it out.")
                yield named["key"], name, _values(named["field"], tar.extractfile(member), name)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{path} is damaged, or no tar: {error}. Fetch it again, or leave it out.") from error


def _open(path: Path) -> IO[bytes]:
    """Open a tar, unpacked, and refuse one that was cut off: tarfile would take the cut for the end."""
    if path.suffix.lower() != ".tar":
        return gzip.open(path)  # notices a cut by itself
    file = path.open("rb")
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - BLOCK))
    if size % BLOCK or any(file.read()):
        file.close()
        raise UserError(f"{path} is cut off: a tar ends with a block of zeros. Fetch it again, or leave it out.")
    file.seek(0)
    return file


def _values(field: str, file: IO[bytes] | None, name: str) -> dict[str, Any]:
    """Values that one file of a pair holds, by their names."""
    assert file is not None, name  # only regular files get here
    stem, _, suffix = field.rpartition(".")
    suffix = suffix.lower()
    content = file.read()
    if f".{suffix}" in SUFFIXES + ARRAYS:
        return {stem or suffix: content}
    if suffix not in ("txt", "json"):
        return {}
    text = decode_text(content, name)
    if suffix == "txt":
        return {stem or "prompt": text.strip()}
    found = parse_json(text, name)
    if stem:
        return {stem: found}
    if not isinstance(found, dict):
        raise UserError(f"{name} must hold an object.")
    return found
