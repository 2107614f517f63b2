"""Write pair tables, each with a record of how it was made.

    FOLDER/train-00000-of-00001.parquet   read back with `data.name=pairs data.path=FOLDER`
    FOLDER/train.provenance.json          how it was made

`write_table` writes new rows: the whole folder is there, or nothing of it. A `Target` is one split of a table that is
made of another one: the same rows and images, with columns added or replaced. Images are embedded as the bytes that
they are, or stay paths; nothing is decoded or encoded anew.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import pyarrow
from datasets import Dataset, Features
from pyarrow import parquet

from diffpo.data.contents import identify
from diffpo.data.records import Table
from diffpo.disk.ahead import groups
from diffpo.disk.changes import name_changes
from diffpo.disk.files import UNFINISHED, whole_folder, write_file, write_json
from diffpo.disk.progress import track
from diffpo.errors import UserError

GROUP_ROWS = 64
"""So many rows are in memory at a time, images included, and in a row group."""
SHARD_BYTES = 500_000_000
"""A new table begins its next file after so much content."""


def file_of(folder: Path, split: str) -> Path:
    """Name the file of a split that is one file, so that it is read back under its own name."""
    return folder / f"{split}-00000-of-00001.parquet"


def record_of(folder: Path, split: str) -> Path:
    """Name the record of how a split was made."""
    return folder / f"{split}.provenance.json"


def read_record(record: Path) -> dict[str, Any]:
    """Read how a table was made."""
    try:
        return json.loads(record.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{record} is damaged ({error}): restore it, or choose another folder.") from error


def check_place(
    folder: Path, recipe: Mapping[str, Any], *, fresh: bool, holds: Sequence[str] = ("train*.parquet", "train.*.json")
) -> None:
    """Check that `folder` is new, empty, or holds a table of this recipe or, with `fresh`, of another one.

    All of the folder is replaced, so files of others, whose names are none of the patterns `holds`, are refused too.
    """
    _check_folder(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    record = record_of(folder, "train")
    if not record.is_file():
        raise UserError(f"{folder} holds other files and no {record.name}: choose another folder.")
    made = read_record(record).get("recipe")
    if made != recipe and not fresh:
        raise _made_otherwise(f"{folder} holds a table made with other settings", record, made, recipe)
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.name.endswith(UNFINISHED))
    if others := sorted(name for name in names if not any(fnmatchcase(name, each) for each in holds)):
        raise UserError(
            f"{folder} is about to be replaced, and holds other files, too, such as {', '.join(others[:3])}: move them "
            "away, or choose another folder."
        )


def write_table(
    folder: Path, features: Features, rows: Iterable[dict[str, Any]], total: int, record: Mapping[str, Any]
) -> None:
    """Write a new table of `total` rows; one that stands there is replaced. `record` says how it was made."""
    with whole_folder(folder.absolute()) as temporary:
        _write_shards(temporary, features, track(rows, "Writing pairs", total))
        write_json(record_of(temporary, "train"), record)


def _write_shards(folder: Path, features: Features, rows: Iterator[dict[str, Any]]) -> None:
    """Write as many files as the content needs; their number, which is part of their names, is known at the end."""
    schema, files, size, writer = features.arrow_schema, [], 0, None
    with contextlib.closing(rows), contextlib.ExitStack() as stack:
        for group in groups(rows, GROUP_ROWS):
            if writer is None or size >= SHARD_BYTES:
                stack.close()
                files.append(folder / f"{len(files)}.part")
                writer, size = stack.enter_context(parquet.ParquetWriter(files[-1], schema)), 0
            content = pyarrow.Table.from_pylist(group, schema=schema)
            writer.write_table(content)
            size += content.nbytes
    for number, file in enumerate(files):
        file.rename(folder / f"train-{number:05d}-of-{len(files):05d}.parquet")


@dataclass(frozen=True)
class Target:
    """A split of a pair table that is to be made of another table."""

    folder: Path
    split: str
    """Other splits may stand in the same folder, made in the same way or not."""
    table: Table
    """What it is made of."""
    recipe: dict[str, Any]
    """All that decides the new columns besides `table`, as plain JSON values; it goes into the record."""

    @property
    def path(self) -> Path:
        """The parquet file."""
        return file_of(self.folder, self.split)

    @property
    def record(self) -> Path:
        """The record beside it."""
        return record_of(self.folder, self.split)

    def is_finished(self, *, fresh: bool) -> bool:
        """Whether the very same table is there already; with `fresh` never. Ask before the work begins."""
        self._check_place()
        if not self.path.exists():
            return False
        if not self.record.is_file():
            raise UserError(f"{self.path} is there, and nothing says how it was made: choose another folder.")
        made = read_record(self.record)
        now = self._provenance
        if all(made.get(name) == value for name, value in now.items()):
            return "rows" in made and not fresh
        if not fresh:
            what = f"{self.path} is there, made of another table or with other settings"
            raise _made_otherwise(what, self.record, {name: made.get(name) for name in now}, now)
        return False

    def write(
        self, rows: Dataset, columns: Mapping[str, Sequence[Any]], notes: Mapping[str, Any] | None = None
    ) -> None:
        """Write rows, usually `table.rows`, with columns added or replaced, and the record, with what `notes` say.

        Images are carried over as they are: bytes, or absolute paths.
        """
        kept = rows.select_columns([name for name in rows.column_names if name not in columns])
        added = pyarrow.table({name: pyarrow.array(values) for name, values in columns.items()})
        assert len(added) == len(kept), (len(added), len(kept))
        media = datasets.Image, datasets.Video
        features = {k: type(f)() if isinstance(f, media) else f for k, f in kept.features.items()}
        schema = datasets.Features(features | datasets.Features.from_arrow_schema(added.schema)).arrow_schema
        source = kept.with_format("arrow")

        def write_parquet(file: BinaryIO) -> None:
            starts = range(0, len(kept), GROUP_ROWS)
            with parquet.ParquetWriter(file, schema) as writer:
                for start in track(starts, "Writing", len(starts)):
                    old, new = source[start : start + GROUP_ROWS], added.slice(start, GROUP_ROWS)
                    parts = dict(zip([*old.column_names, *new.column_names], [*old.columns, *new.columns], strict=True))
                    writer.write_table(pyarrow.table([parts[name] for name in schema.names], schema=schema))

        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.record, self._provenance)  # without `rows`: the table is being written
        write_file(self.path, write_parquet)
        write_json(self.record, self._provenance | {"rows": len(kept), "columns": list(columns), **(notes or {})})

    @cached_property
    def _provenance(self) -> dict[str, Any]:
        """What decides the table; a table that was derived itself brings its own record along."""
        source: dict[str, Any] = {"path": self.table.path, "fingerprint": identify(self.table)}
        earlier = record_of(Path(self.table.path).expanduser(), self.split)
        if earlier.is_file():
            source["provenance"] = read_record(earlier)
        return json.loads(json.dumps({"source": source, "recipe": self.recipe}))

    def _check_place(self) -> None:
        _check_folder(self.folder)
        folder, given = self.folder.resolve(), Path(self.table.path).expanduser()
        source = given.resolve()
        local = given.exists() or any(mark in self.table.path for mark in "*?[")
        if local and (source.is_relative_to(folder) or (source.is_dir() and folder.is_relative_to(source))):
            raise UserError(
                f"the new table cannot stand in {self.folder}: the table that it is made of, {self.table.path}, is "
                "read from there. Choose another folder."
            )


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give the folder that the new table should stand in.")


def _made_otherwise(what: str, record: Path, made: Any, now: Mapping[str, Any]) -> UserError:
    changes = name_changes(made if isinstance(made, Mapping) else {}, now)
    return UserError(
        f"{what} ({record.name} says how): {changes}. Nothing was removed: choose another folder, or give --fresh to "
        "replace it."
    )
