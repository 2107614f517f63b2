"""What the images of a table are, by their bytes: so that nothing is done again for an image that was seen before.

The hash of a file is remembered under its path, size and modification time, that of an image inside a table under the
identity of the table's files and its place. So a start reads no image that it has read before. What is remembered takes
32 bytes for an image, in one file for each column of a table.
"""

import hashlib
import io
import logging
import os
import stat
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path

import numpy as np

from diffpo.data.checks import is_text
from diffpo.data.records import HASHED_ROWS, Table
from diffpo.disk.ahead import WORKERS, ahead
from diffpo.disk.files import write_file
from diffpo.disk.progress import track
from diffpo.disk.rows import KEY_BYTES, as_keys, cache_home, digest, locate
from diffpo.errors import UserError
from diffpo.media.frames import BrokenImage, parts_of, read_bytes

log = logging.getLogger(__name__)

REMEMBERED = np.dtype([("stamp", f"S{KEY_BYTES}"), ("content", f"S{KEY_BYTES}")])


@dataclass(frozen=True)
class Contents:
    """The images of one column."""

    keys: np.ndarray
    """`[n]` hash of each image's bytes; empty where it cannot be read."""
    unreadable: dict[int, str]
    """Why, by row."""


def read_contents(table: Table, side: str, home: Path | None = None, *, shown: bool = True) -> Contents:
    """Hash the images of one side of a table, or remember their hashes in `home`, by default `cache_home()`."""
    stamps, unreadable = _stamps(table, side)
    memory = _memory(table, side, home)
    known = _remembered(memory)
    at = locate(np.ascontiguousarray(known["stamp"]), stamps)
    seen, keys = at >= 0, np.zeros_like(stamps)
    keys[seen] = known["content"][at[seen]]
    new = np.flatnonzero(~seen & (stamps != b""))
    if len(new):
        hashed = ahead(partial(_hash, table, side), new.tolist(), workers=WORKERS, depth=4 * WORKERS)
        for row, found in zip(new.tolist(), track(hashed, "Reading images", len(new), shown=shown), strict=True):
            if isinstance(found, BrokenImage):
                unreadable[row] = str(found)
            else:
                keys[row] = found
        _remember(memory, known, stamps[new], keys[new])
    return Contents(keys, unreadable)


def _stamps(table: Table, side: str) -> tuple[np.ndarray, dict[int, str]]:
    """What a hash is remembered under, `[n]`; empty where there is nothing to hash, with the reason."""
    stamps, unreadable = as_keys([b""] * len(table)), {}
    if not is_text(table.rows.data.schema.field(side).type):  # the table holds the images themselves
        inside = bytes.fromhex(table.fingerprint) + side.encode()
        for row, place in enumerate(table.places.tolist()):
            stamps[row] = hashlib.blake2b(inside + place.to_bytes(8, "little"), digest_size=KEY_BYTES).digest()
        return stamps, unreadable
    folders = 0
    for row, path in enumerate(chain.from_iterable(table.in_parts(table.arrow, side))):
        try:
            found = os.stat(path)  # the system is asked once
            stamp = _stamp(path, found)
            if stat.S_ISDIR(found.st_mode):
                folders += 1
                stamp = b"".join(_stamp(part, os.stat(part)) for part in parts_of(path))
            stamps[row] = hashlib.blake2b(stamp, digest_size=KEY_BYTES).digest()
        except (OSError, ValueError, TypeError, AttributeError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            unreadable[row] = "the cell is empty" if path is None else reason or str(error)
    if folders:
        _say_folders(table.path, side, folders)
    return stamps, unreadable


@cache
def _say_folders(path: str, side: str, count: int) -> None:
    """Say once what is made of cells that name folders."""
    log.warning(f"{path}: {count} cells of `{side}` name folders: their pictures are taken for the frames of clips.")


def _stamp(file: str | Path, found: os.stat_result) -> bytes:
    return b"%b\0%d\0%d" % (os.fsencode(file), found.st_size, found.st_mtime_ns)


def _hash(table: Table, side: str, row: int) -> bytes | BrokenImage:
    """Hash the bytes of an image."""
    cell = table.cell(row, side)
    content = cell.get("bytes") if isinstance(cell, dict) else cell if isinstance(cell, bytes) else None
    path = cell.get("path") if isinstance(cell, dict) else cell
    if content is None and path is None:
        return BrokenImage("the cell is empty")
    try:
        if content is None and len(parts := parts_of(path)) > 1:
            return digest(*(digest(read_bytes(part)) for part in parts))
        return digest(read_bytes(path) if content is None else content)
    except BrokenImage as error:
        return error
    except (OSError, ValueError) as error:
        return BrokenImage(error.strerror if isinstance(error, OSError) and error.strerror else str(error))


def _memory(table: Table, side: str, home: Path | None) -> Path:
    """The file that remembers the hashes of a side."""
    place = os.path.abspath(os.path.expanduser(table.path)) if os.path.exists(table.path) else table.path
    return (home or cache_home()) / "contents" / f"{digest(place, side).hex()}.npy"


def _remembered(memory: Path) -> np.ndarray:
    """What is known, sorted by stamp; nothing, if the file is missing or damaged: then it is made again."""
    try:
        known = np.load(memory, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return np.zeros(0, REMEMBERED)
    return known if known.dtype == REMEMBERED else np.zeros(0, REMEMBERED)


def _remember(memory: Path, known: np.ndarray, stamps: np.ndarray, keys: np.ndarray) -> None:
    new = np.zeros(len(stamps), REMEMBERED)
    new["stamp"], new["content"] = stamps, keys
    together = np.concatenate([known, new[keys != b""]])
    _, first = np.unique(together["stamp"], return_index=True)
    content = io.BytesIO()
    np.save(content, together[first])
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_file(memory, content.getvalue())
    except (OSError, UserError) as error:
        log.warning(f"The hashes of images are not remembered, so the next start reads them again: {error}")


def identify(table: Table) -> str:
    """Identify all that a table holds, images included, by content: the same rows elsewhere are the same table."""
    state = hashlib.blake2b(digest_size=KEY_BYTES)
    for side in ("chosen", "rejected"):
        state.update(read_contents(table, side).keys.tobytes())
    for name in sorted(set(table.rows.column_names) - {"chosen", "rejected"}):
        for values in table.in_parts(table.arrow, name, HASHED_ROWS):
            state.update(repr((name, values)).encode("utf-8", "surrogatepass"))
    return state.hexdigest()
