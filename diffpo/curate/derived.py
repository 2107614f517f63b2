"""Tables made of other tables: the same rows and images, with columns added or replaced.

Two steps, for whatever is slow per image or text (scores, captions):

    values = compute_values("scores", recipe, keys, compute, "Scoring")    # resumable, kept in the cache
    path = target.write(table.rows, columns)                               # one parquet file, whole or not at all

What was computed is kept by content: under the hash of the image and its prompt, in a store (`disk.rows`) whose name
depends on what computes it. So a run that was killed loses little, and the same images in another table, or another
temperature, compute nothing anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffpo.data.contents import identify
from diffpo.data.splits import load_splits
from diffpo.disk.files import write_file, write_json
from diffpo.disk.lock import sole_writer
from diffpo.disk.progress import track
from diffpo.disk.rows import Row, RowStore, digest, key_at
from diffpo.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from diffpo.data.records import Source, Table

ROWS_PER_FILE = 64
"""Values that a kill costs at most: a caption may take seconds."""
ROW_GROUP = 100
"""Rows written at a time: what is held in memory, images included."""


def read_tables(source: Source) -> dict[str, Table]:
    """Read what is to be derived from: `train`, and `validation` if the source has a table or split of its own for it.

    A `validation_fraction` is left to be divided off the derived table, where it chooses the same prompts.

    Raises:
        UserError: A table cannot be read, or a prompt stands in both.
    """
    splits = load_splits(dataclasses.replace(source, validation_fraction=0.0))
    return {"train": splits.train} | ({"validation": splits.validation} if splits.validation else {})


def key_images(contents: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """`[n]` keys of images and their prompts; empty where an image cannot be read."""
    keys = np.zeros_like(contents)
    for row in np.flatnonzero(contents != b"").tolist():
        keys[row] = digest(key_at(contents, row), prompts[row])
    return keys


def compute_values(
    kind: str,
    recipe: Mapping[str, Any],
    keys: np.ndarray,
    compute: Callable[[list[int]], Iterable[Mapping[str, Any]]],
    title: str,
) -> list[Mapping[str, Any] | None]:
    """Compute something for every key; what an earlier call has finished is read, not computed.

    Args:
        kind: What is computed: `scores`, `captions`.
        recipe: All that decides a value besides its key, as plain JSON values.
        keys: `[n]`; where one is empty nothing is computed.
        compute: Yields the values of the places in `keys` that it is given, in that order, as plain values.
        title: For the progress.

    Returns:
        `n` values; None where the key is empty.

    Raises:
        UserError: The disk is full, a file of values is damaged, or whatever `compute` raises. What is finished stays.
    """
    store, wanted = RowStore(kind, recipe, rows_per_file=ROWS_PER_FILE), np.flatnonzero(keys != b"")
    store.fill(keys[wanted], lambda some: map(Row, compute(wanted[some].tolist())), title)
    codes, kinds = store.values(keys[wanted])
    values: list[Mapping[str, Any] | None] = [None] * len(keys)
    for place, code in zip(wanted.tolist(), codes.tolist(), strict=True):
        values[place] = kinds[code]
    return values


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): delete it and run the command again.") from error


@contextlib.contextmanager
def writing(command: str, targets: Sequence[Target], *, fresh: bool) -> Iterator[list[Target]]:
    """Hold the places of tables against other commands, and find those that are still to be written.

    Args:
        command: What writes, for messages: "diffpo data score".
        targets: Tables in one folder.
        fresh: Whether tables that were made in another way may be replaced.

    Raises:
        UserError: Another command writes there, or see `Target.is_finished`.
    """
    with sole_writer(targets[0].folder, command):
        yield [target for target in targets if not target.is_finished(fresh=fresh)]


@dataclass(frozen=True)
class Target:
    """A split of a pair table that is to be written, and how it is made."""

    folder: Path
    split: str
    """Other splits may stand in the same folder, made in the same way or not."""
    table: Table
    """What it is made of."""
    recipe: dict[str, Any]
    """All that decides the new columns besides `table`, as plain JSON values; goes into the provenance file."""

    @property
    def path(self) -> Path:
        """The parquet file, named so that the split is read back under its own name."""
        return self.folder / f"{self.split}-00000-of-00001.parquet"

    @property
    def record(self) -> Path:
        """The provenance beside it, as JSON; without `rows` while the table is being written."""
        return self.folder / f"{self.split}.provenance.json"

    def is_finished(self, *, fresh: bool) -> bool:
        """Whether the very same table is there already; ask before the work begins.

        Args:
            fresh: Whether a table that was made in another way may be replaced.

        Raises:
            UserError: A table made in another way is there and `fresh` is not set, something else is, or writing there
                would change the table that is read.
        """
        self._check_place()
        if not self.path.exists():
            return False
        if not self.record.is_file():
            raise UserError(f"{self.path} is there, and nothing says how it was made: choose another folder.")
        made = _read(self.record)
        if all(made.get(name) == value for name, value in self._provenance.items()):
            return "rows" in made and not fresh
        if not fresh:
            raise UserError(
                f"{self.path} is there, made of another table or with other settings ({self.record.name} says how): "
                "choose another folder, or give --fresh to replace it."
            )
        return False

    def write(
        self, rows: Dataset, columns: Mapping[str, Sequence[Any]], notes: Mapping[str, Any] | None = None
    ) -> Path:
        """Write the table and its provenance; images are carried over as they are: bytes, or absolute paths.

        Args:
            rows: In standard columns; usually `table.rows`.
            columns: Added, or put in the place of those of the same name; one value per row.
            notes: What else the provenance file should say, such as counts.

        Returns:
            The parquet file.

        Raises:
            UserError: The disk is full; what stood there before is untouched.
        """
        import datasets
        import pyarrow
        from pyarrow import parquet

        kept = rows.select_columns([name for name in rows.column_names if name not in columns])
        added = pyarrow.table({name: pyarrow.array(values) for name, values in columns.items()})
        features = {k: datasets.Image() if isinstance(f, datasets.Image) else f for k, f in kept.features.items()}
        schema = datasets.Features(features | datasets.Features.from_arrow_schema(added.schema)).arrow_schema
        source = kept.with_format("arrow")

        def write_parquet(file: Any) -> None:
            starts = range(0, len(kept), ROW_GROUP)
            with parquet.ParquetWriter(file, schema) as writer:
                for start in track(starts, "Writing", len(starts)):
                    old, new = source[start : start + ROW_GROUP], added.slice(start, ROW_GROUP)
                    parts = dict(zip(old.column_names, old.columns, strict=True))
                    parts |= dict(zip(new.column_names, new.columns, strict=True))
                    writer.write_table(pyarrow.table([parts[name] for name in schema.names], schema=schema))

        assert len(added) == len(kept), (len(added), len(kept))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_record({})
        write_file(self.path, write_parquet)
        self._write_record({"rows": len(kept), "columns": list(columns), **(notes or {})})
        return self.path

    def _write_record(self, more: Mapping[str, Any]) -> None:
        write_json(self.record, self._provenance | dict(more))

    @cached_property
    def _provenance(self) -> dict[str, Any]:
        """What decides the table; a table that was derived itself brings its own provenance along."""
        earlier = Path(self.table.path).expanduser() / self.record.name
        source: dict[str, Any] = {"path": self.table.path, "fingerprint": identify(self.table)}
        if earlier.is_file():
            source["provenance"] = _read(earlier)
        return json.loads(json.dumps({"source": source, "recipe": self.recipe}))

    def _check_place(self) -> None:
        folder, given = self.folder.resolve(), Path(self.table.path).expanduser()
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is a file; give the folder that the new table should stand in.")
        source = given.resolve()
        local = given.exists() or any(mark in self.table.path for mark in "*?[")
        if local and (source.is_relative_to(folder) or (source.is_dir() and folder.is_relative_to(source))):
            raise UserError(
                f"the new table cannot stand in {self.folder}: the table that it is made of, {self.table.path}, is "
                "read from there. Choose another folder."
            )
