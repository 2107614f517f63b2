"""Several files as one table: where a column is of different types, it gets the one that holds them all."""

from __future__ import annotations

import glob
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow
from pyarrow import parquet

from diffpo.disk.columns import join_tables, read_columns
from diffpo.disk.tables import refuse_twins
from diffpo.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset, Features


def parse_texts(files: Sequence[Path], texts: Sequence[str]) -> pyarrow.Table:
    """Read tables in text below each other."""
    parts = [read_columns(file, texts) for file in files]
    try:
        return join_tables(parts)
    except pyarrow.ArrowException as error:
        raise _different(files, [part.schema for part in parts], error) from error


def map_parquet(files: Sequence[Path], path: str | Path) -> Dataset:
    """Map parquet files as one table; where a column is of different types, it gets the one that holds them all."""
    import datasets

    try:
        schemas = [parquet.read_schema(file) for file in files]
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} cannot be read as a .parquet table: {error}") from error
    for file, schema in zip(files, schemas, strict=True):
        refuse_twins(file, schema.names)
    alike = all(schema.equals(schemas[0]) for schema in schemas)
    names = [glob.escape(str(file)) for file in files]
    try:
        features = None if alike else _common_features(schemas)
        return datasets.load_dataset("parquet", data_files=names, features=features, split="train")
    except (pyarrow.ArrowException, ValueError, TypeError, datasets.exceptions.DatasetGenerationError) as error:
        if not alike:
            raise _different(files, schemas, error) from error
        raise UserError(f"{path} cannot be read as a .parquet table: {error.__cause__ or error}") from error


def _common_features(schemas: Sequence[pyarrow.Schema]) -> Features:
    """Find the types that hold what all files hold; what `datasets` knows of a column, such as images, stays."""
    import datasets

    whole = pyarrow.unify_schemas(schemas, promote_options="permissive").remove_metadata()
    common = datasets.Features.from_arrow_schema(whole)
    for schema in schemas:
        found = datasets.Features.from_arrow_schema(schema)
        common |= {name: kind for name, kind in found.items() if not isinstance(kind, datasets.Value)}
    return common


def _different(files: Sequence[Path], schemas: Sequence[pyarrow.Schema], error: Exception) -> UserError:
    """Say which column is of types that have nothing in common, and in which files."""
    kinds = defaultdict(dict)
    for file, schema in zip(files, schemas, strict=True):
        for field in schema:
            kinds[field.name].setdefault(str(field.type), file.name)
    odd = {name: found for name, found in kinds.items() if len(found.keys() - {"null"}) > 1}
    said = "; ".join(
        f"`{name}` is " + " and ".join(f"{kind} in {file}" for kind, file in found.items())
        for name, found in odd.items()
    )
    return UserError(f"The files of a table hold different things: {said or error}. Give each column one type.")
