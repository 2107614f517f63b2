"""A folder on this machine or in an object store, by its address: `runs/encoded`, `s3://bucket/pairs`, `https://...`.

What lies elsewhere is read through fsspec, which knows a store by the beginning of its address and reads the user's
credentials as that store's own programs do. Other stores than those that it brings need a package of its family, such
as `s3fs`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from diffpo.disk.files import write_file
from diffpo.errors import UserError


class Storage:
    """Files below one address."""

    def __init__(self, address: str):
        """Find out who knows the address; nothing is read.

        Raises:
            UserError: Nobody does.
        """
        from fsspec.core import url_to_fs

        self.address = address
        try:
            self._files, self._root = url_to_fs(address)
        except (ImportError, ValueError) as error:
            raise UserError(f"{address} cannot be opened: {error}") from error
        self.folder = Path(self._root) if "file" in self._protocols else None
        """Where it is, if that is on this machine."""

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
        try:
            return json.loads(self._files.cat_file(self._place(name)))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(f"{self.address}/{name} cannot be read: {error}") from error

    def fetch(self, name: str, file: Path) -> None:
        """Copy a file to this machine, whole or not at all.

        Raises:
            UserError: It is not there, the store does not answer, or the disk is full.
        """

        def copy(opened: BinaryIO) -> None:
            with self._files.open(self._place(name), "rb") as there:
                while part := there.read(2**22):
                    opened.write(part)

        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_file(file, copy)
        except OSError as error:
            raise UserError(f"{self.address}/{name} cannot be read: {error}") from error

    def write(self, name: str, fill: Callable[[BinaryIO], Any]) -> int:
        """Write a file, whole or not at all; returns its bytes.

        Raises:
            UserError: It cannot be written.
        """
        if self.folder is not None:
            file = self.folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            write_file(file, fill)
            return file.stat().st_size
        with tempfile.NamedTemporaryFile() as here:
            fill(here)  # pyright: ignore[reportArgumentType]
            here.flush()
            try:
                self._files.put_file(here.name, self._place(name))
            except (OSError, NotImplementedError) as error:
                raise UserError(f"{self.address}/{name} cannot be written: {error}") from error
            return Path(here.name).stat().st_size

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file; see `write`."""
        self.write(name, lambda file: file.write((json.dumps(value, indent=1) + "\n").encode()))
