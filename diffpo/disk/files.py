"""Files and folders that are there whole, or not at all: all that diffpo writes under a final name goes through here.

    write_file(path, content)                bytes, a text, or a function that fills the open file
    with whole_folder(path) as folder: ...   fill `folder`; it gets the name `path` when the block ends

The content is written under a unique hidden name beside its place, which is opened exclusively and follows no link. It
is synced to the disk and then renamed. A folder that stands there already is exchanged for the new one in a single
step, so there is no moment without a whole one. What a kill leaves behind is removed by `sweep`: a writer holds a lock
on its unfinished file, and the system lets go of that lock when the writer dies.
"""

import contextlib
import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import math
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from diffpo.errors import UserError, disk_is_full

UNFINISHED = ".unfinished"
"""Ending of the names of unfinished files and folders, which begin with a dot."""

Content = bytes | str | Callable[[BinaryIO], Any]


def write_file(path: Path, content: Content) -> None:
    """Write a file so that, whatever happens, `path` holds either the old content or all of the new one.

    Args:
        path: The file; its folder exists. A link of that name is replaced, what it points at is not touched.
        content: Bytes, a text (written as UTF-8), or a function that writes into the open file.

    Raises:
        UserError: The disk is full, or the place cannot be written.
    """
    with writing(path):
        temporary, handle = _begin(path, folder=False)
        try:
            with os.fdopen(handle, "wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; see `write_file`.

    Raises:
        ValueError: It holds a NaN or an infinity, which JSON cannot say.
    """
    write_file(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def check_output(path: Path) -> None:
    """Check, before the work begins, that a file can be written.

    Raises:
        UserError: A folder stands in its place, its folder is a file, or nothing can be written there.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder. Name a file to write, such as {path / 'NAME'}.")
    around = next(folder for folder in path.absolute().parents if folder.exists())
    if not around.is_dir():
        raise UserError(f"{path} cannot be written: {around} is a file, where a folder is needed. Name another place.")
    if not os.access(around, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written: nothing may be written in {around}. Name another place.")


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Fill a folder under another name; it gets the name `path` when the block ends without an error.

    A folder of that name is replaced in one step where the system can do that (Linux and macOS); elsewhere it stands
    under a hidden name for a moment. If `path` is a link to a folder, the folder that it points at is replaced.

    Args:
        path: The folder; the folder around it is made if it does not exist.

    Yields:
        The folder to fill.

    Raises:
        UserError: The disk is full, or the place cannot be written. What stood there is untouched.
    """
    path = path.resolve() if path.is_symlink() else path
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, path.name)
        temporary, handle = _begin(path, folder=True)
        try:
            yield temporary
            mode = temporary.stat().st_mode & 0o666
            for item in sorted(temporary.rglob("*"), reverse=True):
                if item.is_file():
                    item.chmod(mode)  # libraries open some files for their owner alone; the user's umask decides
                sync(item)
            sync(temporary)
            _put(temporary, path)
            sync(path.parent)
        finally:
            os.close(handle)
            shutil.rmtree(temporary, ignore_errors=True)


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what writers that were killed left in `folder`, perhaps of one `name` alone; what is written now stays."""
    for left in folder.glob(".*" + UNFINISHED if name is None else f".{glob.escape(name)}.*{UNFINISHED}"):
        with contextlib.suppress(OSError):  # it is somebody's who lives, or somebody else has removed it
            handle = os.open(left, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(left)
            finally:
                os.close(handle)


def remove(path: Path) -> None:
    """Remove a file, a link (not what it points at) or a whole folder; what is not there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def discard(path: Path) -> None:
    """Remove a file, a link or a whole folder, of which no half is ever there under its name."""
    is_folder = path.is_dir() and not path.is_symlink()
    remove(path.rename(path.with_name(f".{path.name}{UNFINISHED}")) if is_folder else path)


def hash_of(content: bytes | str, size: int = 8) -> str:
    """A short hash, in hexadecimal digits, two per byte of `size`."""
    return hashlib.blake2b(content.encode() if isinstance(content, str) else content, digest_size=size).hexdigest()


def sync(path: Path) -> None:
    """Make sure that a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def without_nan(value: Any) -> Any:
    """Make every NaN in nested values None."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _begin(path: Path, *, folder: bool) -> tuple[Path, int]:
    """Make an unfinished file or folder for `path`, and lock it; returns its name and the open handle."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
        if folder:
            temporary.mkdir()
            handle = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW)
        else:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        with contextlib.suppress(OSError):  # some network disks have no locks: there nothing sweeps either
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if temporary.exists():  # a sweep may have come between making and locking
            return temporary, handle
        os.close(handle)


def _put(new: Path, path: Path) -> None:
    """Give a folder its final name; what stood there is under the old name of `new` afterwards, or gone."""
    if not path.exists():
        new.rename(path)
    elif not _exchange(new, path):
        aside = path.with_name(f".{path.name}.replaced")
        remove(aside)
        path.rename(aside)
        new.rename(path)
        remove(aside)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two names in one step; False where the system or the disk cannot do it."""
    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(a), os.fsencode(b)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        return library.renameat2(here, names[0], here, names[1], exchange) == 0
    if sys.platform == "darwin":
        return library.renamex_np(*names, 2) == 0  # RENAME_SWAP
    return False


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses while `path` is written into a message that names it.

    Raises:
        UserError: The disk is full, or the place cannot be written.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if disk_is_full(error):
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(
                f"the disk is full: {path} could not be written ({reason}). What was complete before is untouched: "
                "free some space and run the same command again."
            ) from error
        places = PermissionError | NotADirectoryError | IsADirectoryError | FileExistsError
        if isinstance(error, places) or (isinstance(error, OSError) and error.errno == errno.EROFS):
            raise UserError(f"{path} cannot be written ({error.strerror}): choose another place.") from error
        raise
