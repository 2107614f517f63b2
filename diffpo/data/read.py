"""Every form in which a table may be given, read as a memory-mapped `datasets.Dataset` whose images are not decoded.

A form answers two questions: the rows, and the identity of the files that hold them (names, sizes, modification times;
for the Hub the commit). Image files that a table merely points at are not part of it: `contents` looks at those.
"""

from __future__ import annotations

import glob
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow
from pyarrow import compute, types

from diffpo.data.checks import is_text
from diffpo.data.joining import map_parquet, parse_texts
from diffpo.disk.mapped import mapped
from diffpo.disk.rows import cache_home, digest
from diffpo.disk.tables import TABLES, files_below, hash_file, is_hidden
from diffpo.errors import UserError
from diffpo.worlds.assets import WORLDS, asset_path

if TYPE_CHECKING:
    from datasets import Dataset

EMBEDDED = {
    "shapes:pairs": "shapes/pairs",
    "moving:independent": "moving/independent",
    "moving:guided": "moving/guided",
    "users:pairs": "users/pairs",
}
"""Names of the embedded worlds' pair tables, and what `diffpo.worlds.assets` calls them."""
FORMS = (
    "a Hub id (owner/name), a folder written by `datasets` save_to_disk, a parquet file, folder or glob, a .jsonl, "
    ".json, .csv or .tsv table (image paths relative to the table), a folder holding metadata.jsonl, metadata.csv or "
    "metadata.parquet, or a table of an embedded world such as shapes:pairs; `diffpo data import` makes one of tars, "
    "folders of images and other layouts"
)
TEXTS = (
    *("prompt", "chosen_prompt", "rejected_prompt", "caption", "caption_0", "caption_1", "user_id"),
    *("chosen", "rejected", "jpg_0", "jpg_1", "path1", "path2"),
)
"""Columns that hold texts, whatever they look like in a CSV file."""
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
PARSED = "1"
"""Raise it when the same text becomes other columns."""
SHARD_NAME = re.compile(r"(?P<split>.+?)-\d{4,}-of-\d{4,}")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Raw:
    """One split as it was found, in the columns of its own layout."""

    rows: Dataset
    fingerprint: str
    """Changes whenever the content of the table's files may have changed."""


def read_table(
    path: str, split: str, images: Sequence[str], texts: Sequence[str] = (), home: Path | None = None
) -> Raw:
    """Read one split of a table.

    Args:
        path: Any of `FORMS`.
        split: Name of the split; a single file and a glob have only `train`.
        images: Columns that hold images. They come back undecoded, with absolute paths.
        texts: Columns that hold texts, whatever they look like in a CSV file, besides `TEXTS`.
        home: The folder of all caches, where columns that were made are kept; `cache_home()` by default.

    Raises:
        UserError: Nothing readable is there, or it has no such split, or it has no rows.
    """
    kept = (home or cache_home()) / "tables"
    rows, identity, root = _open(path, split, (*TEXTS, *texts), kept)
    if not len(rows):
        raise UserError(f"The table {path} (split {split}) has no rows.")
    for name in (name for name in images if name in rows.column_names):
        rows = _leave_undecoded(rows, name, root, kept / f"{digest(name, str(root), *identity).hex()}.arrow")
    return Raw(rows, digest(split, *identity).hex())


def _open(path: str, split: str, texts: Sequence[str], kept: Path) -> tuple[Dataset, list[str], Path]:
    """Rows, one line of identity per file, and the folder that relative image paths start from."""
    if path.partition(":")[0] in WORLDS:
        path = _embedded_path(path)
    local = Path(os.path.expanduser(path))
    if local.is_file():
        return _open_files(_pick(path, {"train": [local]}, split), path, texts, kept)
    if local.is_dir():
        return _open_folder(local, split, texts, kept)
    if local.exists():
        raise UserError(f"{path} is neither a file nor a folder. A table can be given as {FORMS}.")
    if glob.has_magic(path):
        found = [Path(name) for name in sorted(glob.glob(str(local), recursive=True)) if "__MACOSX" not in name]
        return _open_files(_pick(path, {"train": found}, split), path, texts, kept)
    if HUB_ID.fullmatch(path) and local.suffix.lower() not in TABLES:
        return _open_hub(path, split)
    raise UserError(f"There is nothing at {path}. A table can be given as {FORMS}.")


def _pick(path: str | Path, splits: dict[str, list[Path]], split: str) -> list[Path]:
    if split == "train" and len(splits) == 1:  # a table without splits needs no data.split
        return next(iter(splits.values()))
    if split not in splits:
        raise UserError(
            f"{path} has no split `{split}`; it has {', '.join(sorted(splits))}. "
            "Set data.split (or data.validation_split)."
        )
    return splits[split]


def _embedded_path(path: str) -> str:
    if path not in EMBEDDED:
        raise UserError(f"{path} is no table of an embedded world; there are {', '.join(EMBEDDED)}.")
    try:
        return str(asset_path(EMBEDDED[path]))
    except FileNotFoundError as error:
        raise UserError(f"{path} is not here: {error}") from error


def _open_folder(folder: Path, split: str, texts: Sequence[str], kept: Path) -> tuple[Dataset, list[str], Path]:
    import datasets

    if (folder / "dataset_dict.json").is_file():
        folder = _pick(folder, {p.parent.name: [p.parent] for p in folder.glob("*/state.json")}, split)[0]
    elif (folder / "state.json").is_file():
        _pick(folder, {"train": [folder]}, split)
    if (folder / "state.json").is_file():
        rows = datasets.load_from_disk(str(folder))
        return (
            rows,
            _identity(sorted(p for p in folder.iterdir() if p.is_file() and not is_hidden(p.name)), folder),
            folder,
        )
    for place in (folder / split, folder):
        metadata = [file for suffix in TABLES if (file := place / f"metadata{suffix}").is_file()]
        if metadata:
            files = metadata[:1] if place.name == split else _pick(folder, {"train": metadata[:1]}, split)
            return _open_files(files, folder, texts, kept)
    for suffix in TABLES[:-1]:  # .json files are often something else than tables
        if files := files_below(folder, [suffix]):
            splits = defaultdict(list)
            for file in files:
                splits[_split_of(file.relative_to(folder))].append(file)
            return _open_files(_pick(folder, splits, split), folder, texts, kept)
    found = ", ".join(sorted(p.name for p in folder.iterdir() if not is_hidden(p.name))[:8]) or "nothing"
    raise UserError(f"The folder {folder} holds no table: found {found}. A table can be given as {FORMS}.")


def _split_of(file: Path) -> str:
    """Read a file's split from its name (`train-00000-of-00002.parquet`, `validation.jsonl`) or its folder."""
    sharded = SHARD_NAME.match(file.stem)
    if sharded and sharded["split"] not in ("data", "part"):
        return SPLIT_WORDS.get(sharded["split"], sharded["split"])
    for word in (re.split(r"[-_.]", file.stem)[0], *reversed(file.parent.parts)):
        if word in SPLIT_WORDS:
            return SPLIT_WORDS[word]
    return "train"


def _open_files(
    files: list[Path], path: str | Path, texts: Sequence[str], kept: Path
) -> tuple[Dataset, list[str], Path]:

    if not files:
        raise UserError(f"No file matches {path}.")
    suffixes = {file.suffix.lower() for file in files}
    if len(suffixes) > 1 or not suffixes <= set(TABLES):
        raise UserError(
            f"{path} is not a table that can be read: found {', '.join(sorted(suffixes))}, allowed {', '.join(TABLES)}."
        )
    root = files[0].parent.absolute()
    if suffixes == {".parquet"}:
        return map_parquet(files, path), _identity([file.absolute() for file in files], root), root
    identity = [f"{os.path.relpath(file.absolute(), root)}\t{hash_file(file).hex()}" for file in files]
    file = kept / f"{digest(PARSED, *identity, *texts).hex()}.arrow"
    return mapped(file, lambda: parse_texts(files, texts)), identity, root


def _open_hub(path: str, split: str) -> tuple[Dataset, list[str], Path]:
    import datasets

    advice = (
        f"Give a local copy instead (`hf download --repo-type dataset {path} --local-dir DIR`, then data.path=DIR). "
        f"A table can be given as {FORMS}."
    )
    try:
        rows = datasets.load_dataset(path, split=split)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{path} is no local file or folder, and split `{split}` of the Hub dataset {path} cannot be read "
            f"({type(error).__name__}: {error}). {advice}"
        ) from error
    # The Hub's cache keeps .../<config>/<version>/<commit>/<file>: the commit stands for the content.
    identity = ["/".join(Path(f["filename"]).parts[-4:]) for f in rows.cache_files]
    return rows, [path, *identity], Path.cwd()


def _identity(files: Sequence[Path], root: Path) -> list[str]:
    """One line per file: name below `root`, size, modification time; a file that is not there is said to be missing."""
    lines = []
    for file in files:
        name = str(file.relative_to(root)) if file.is_relative_to(root) else file.name
        try:
            stat = file.stat()
            lines.append(f"{name}\t{stat.st_size}\t{stat.st_mtime_ns}")
        except OSError:
            lines.append(f"{name}\tmissing")
    return lines


def _leave_undecoded(rows: Dataset, name: str, root: Path, kept: Path) -> Dataset:
    """Switch decoding off for an image column, and make its paths absolute if it holds any."""
    import datasets

    for kind in (datasets.Image, datasets.Video):
        if isinstance(rows.features[name], kind):
            rows = rows.cast_column(name, kind(decode=False))
    paths = _find_paths(rows.with_format("arrow")[:][name] if rows._indices else rows.data.column(name), name)
    if paths is None:
        return rows

    def whole() -> pyarrow.Table:
        texts = paths.cast(pyarrow.string())
        if compute.any(compute.starts_with(texts, "~")).as_py():
            texts = pyarrow.array([None if path is None else os.path.expanduser(path) for path in texts.to_pylist()])
        below = compute.binary_join_element_wise(f"{root}/", texts, "")
        return pyarrow.table({name: compute.if_else(compute.starts_with(texts, "/"), texts, below)})

    return datasets.concatenate_datasets([rows.remove_columns([name]), mapped(kept, whole)], axis=1)


def _find_paths(cells: pyarrow.ChunkedArray, name: str) -> pyarrow.ChunkedArray | None:
    """Read the paths in an image column; None if it holds the files themselves, which are not read."""
    kind = cells.type
    if is_text(kind):
        return cells
    if types.is_binary(kind) or types.is_large_binary(kind):
        return None
    fields = {field.name for field in kind} if types.is_struct(kind) else set()
    if not fields & {"bytes", "path"}:
        raise UserError(
            f"The column `{name}` holds {kind}; allowed are image features of `datasets`, the bytes of image files, "
            "and paths."
        )
    embedded = "bytes" in fields and compute.any(compute.is_valid(compute.struct_field(cells, "bytes"))).as_py()
    return None if embedded or "path" not in fields else compute.struct_field(cells, "path")
