"""A folder on this machine or in an object store, by its address: `runs/encoded`, `s3://bucket/pairs`, `https://...`.

What lies elsewhere is read through fsspec, which knows a store by the beginning of its address and reads the user's
credentials as that store's own programs do. Other stores than those that it brings need a package of its family, such
as `s3fs`.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from diffpo.disk.files import write_file
from diffpo.disk.tables import hash_file
from diffpo.errors import UserError, disk_is_full


@dataclass(frozen=True)
class Written:
    """What a file that was written is."""

    bytes: int
    content: str
    """The hash of its bytes."""

    @staticmethod
    def of(file: Path) -> Written:
        """Look at a file."""
        return Written(file.stat().st_size, hash_file(file).hex())


class Storage:
    """Files below one address."""

    def __init__(self, address: str):
        """Find out who knows the address; nothing is read.

        Raises:
            UserError: Nobody does.
        """
        from fsspec.core import url_to_fs

        if not address.strip():
            raise UserError("the address is empty: give a folder, or an address such as s3://bucket/pairs")
        if half := re.match(r"([a-z0-9]+):/(?!/)", address):  # it would be a folder of that name
            raise UserError(f"{address} is no address: did you mean {half[1]}://{address[half.end() :]}?")
        self.address = address
        with self._telling(address, "opened"):
            self._files, self._root = url_to_fs(address)
        self.folder = Path(self._root) if "file" in self._protocols else None
        """Where it is, if that is on this machine."""
        if self.folder is not None and self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{address} is a file: give a folder, or an address such as s3://bucket/pairs")

    @staticmethod
    @contextmanager
    def _telling(what: str, done: str) -> Iterator[None]:
        """Say of whatever a store raises (each has errors of its own) that something cannot be done."""
        try:
            yield
        except Exception as error:
            if isinstance(error, UserError) or disk_is_full(error):
                raise
            raise UserError(f"{what} cannot be {done}: {error or type(error).__name__}") from error

    @property
    def _protocols(self) -> tuple[str, ...]:
        named = self._files.protocol
        return (named,) if isinstance(named, str) else tuple(named)

    def _place(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def read_json(self, name: str) -> Any:
        """Read a JSON file; None where there is none.

        Raises:
            UserError: It is damaged, or the store does not answer.
        """
        with self._telling(f"{self.address}/{name}", "read"):
            try:
                return json.loads(self._files.cat_file(self._place(name)))
            except FileNotFoundError:
                return None

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none.

        Raises:
            UserError: The store does not answer.
        """
        with self._telling(f"{self.address}/{name}", "read"):
            try:
                return self._files.size(self._place(name))
            except FileNotFoundError:
                return None

    def remove(self, name: str) -> None:
        """Remove a file, if it is there.

        Raises:
            UserError: It cannot be removed.
        """
        with self._telling(f"{self.address}/{name}", "removed"), suppress(FileNotFoundError):
            self._files.rm_file(self._place(name))

    def fetch(self, name: str, file: Path) -> None:
        """Copy a file to this machine, whole or not at all.

        Raises:
            UserError: It is not there, the store does not answer, or the disk is full.
        """

        def copy(opened: BinaryIO) -> None:
            with self._files.open(self._place(name), "rb") as there:
                while part := there.read(2**22):
                    opened.write(part)

        with self._telling(f"{self.address}/{name}", "read"):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_file(file, copy)

    def write(self, name: str, fill: Callable[[BinaryIO], Any]) -> Written:
        """Write a file, whole or not at all.

        Raises:
            UserError: It cannot be written.
        """
        if self.folder is not None:
            file = self.folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            write_file(file, fill)
            return Written.of(file)
        with tempfile.NamedTemporaryFile() as here:
            fill(here)  # pyright: ignore[reportArgumentType]
            here.flush()
            with self._telling(f"{self.address}/{name}", "written"):
                self._files.put_file(here.name, self._place(name))
            return Written.of(Path(here.name))

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file; see `write`."""
        self.write(name, lambda file: file.write((json.dumps(value, indent=1) + "\n").encode()))
