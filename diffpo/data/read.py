"""Every form in which a table may be given, read as a memory-mapped `datasets.Dataset` whose images are not decoded.

A form answers two questions: the rows, and the identity of the files they came from (names, sizes, modification times;
for the Hub the commit). The identity goes into the key of the encoding cache, so it must change whenever an image could
have changed: image files that a table merely points at are part of it.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffpo.errors import UserError

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

FORMS = (
    "a Hub id (owner/name), a folder written by `datasets` save_to_disk, a parquet file, folder or glob, a .jsonl, "
    ".json or .csv table (image paths relative to the table), a folder holding metadata.jsonl, metadata.csv or "
    "metadata.parquet, or shapes:pairs; `diffpo data import` makes one of tars, folders of images and other layouts"
)
SUFFIXES = (".parquet", ".jsonl", ".csv", ".json")
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SHARD_NAME = re.compile(r"(?P<split>.+?)-\d{4,}-of-\d{4,}")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Raw:
    """One split as it was found, in the columns of its own layout."""

    rows: Dataset
    fingerprint: str
    """Changes whenever the content may have changed."""


def read_table(path: str, split: str, images: Sequence[str]) -> Raw:
    """Read one split of a table.

    Args:
        path: Any of `FORMS`.
        split: Name of the split; a single file and a glob have only `train`.
        images: Columns that hold images. They come back undecoded, with absolute paths.

    Raises:
        UserError: Nothing readable is there, or it has no such split, or it has no rows.
    """
    rows, identity, root = _open(path, split)
    if not len(rows):
        raise UserError(f"The table {path} (split {split}) has no rows.")
    digest = hashlib.blake2b("\n".join([split, *identity]).encode(), digest_size=16)
    for name in (name for name in images if name in rows.column_names):
        rows, paths = _leave_undecoded(rows, name, root)
        digest.update("\n".join([name, *_identity([Path(p) for p in paths if p], root)]).encode())
    return Raw(rows, digest.hexdigest())


def _open(path: str, split: str) -> tuple[Dataset, list[str], Path]:
    """Rows, one line of identity per file, and the folder that relative image paths start from."""
    if path.startswith("shapes:"):
        path = _shapes_path(path)
    local = Path(path).expanduser()
    if local.is_file():
        return _open_files(_pick(path, {"train": [local]}, split), path)
    if local.is_dir():
        return _open_folder(local, split)
    if glob.has_magic(path):
        return _open_files(
            _pick(path, {"train": [Path(p) for p in sorted(glob.glob(str(local), recursive=True))]}, split), path
        )
    if HUB_ID.fullmatch(path) and local.suffix not in SUFFIXES:
        return _open_hub(path, split)
    raise UserError(f"There is nothing at {path}. A table can be given as {FORMS}.")


def _pick(path: str | Path, splits: dict[str, list[Path]], split: str) -> list[Path]:
    if split not in splits:
        raise UserError(
            f"{path} has no split `{split}`; it has {', '.join(sorted(splits))}. "
            "Set data.split (or data.validation_split)."
        )
    return splits[split]


def _shapes_path(path: str) -> str:
    if path != "shapes:pairs":
        raise UserError(f"{path} is not a table of the shapes world; it has one: shapes:pairs.")
    from diffpo.worlds.shapes.assets import asset_path

    try:
        return str(asset_path("pairs"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is not here: {error}") from error


def _open_folder(folder: Path, split: str) -> tuple[Dataset, list[str], Path]:
    import datasets

    if (folder / "dataset_dict.json").is_file():
        folder = _pick(folder, {p.parent.name: [p.parent] for p in folder.glob("*/state.json")}, split)[0]
    elif (folder / "state.json").is_file():
        _pick(folder, {"train": [folder]}, split)
    if (folder / "state.json").is_file():
        rows = datasets.load_from_disk(str(folder))
        return rows, _identity(sorted(p for p in folder.iterdir() if p.is_file()), folder), folder
    for place in (folder / split, folder):
        metadata = [place / f"metadata{suffix}" for suffix in SUFFIXES if (place / f"metadata{suffix}").is_file()]
        if metadata:
            return _open_files(
                metadata[:1] if place.name == split else _pick(folder, {"train": metadata[:1]}, split), folder
            )
    for suffix in SUFFIXES[:-1]:
        files = sorted(folder.rglob(f"*{suffix}"))
        if files:
            splits = defaultdict(list)
            for file in files:
                splits[_split_of(file.relative_to(folder))].append(file)
            return _open_files(_pick(folder, splits, split), folder)
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
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


def _open_files(files: list[Path], path: str | Path) -> tuple[Dataset, list[str], Path]:
    import datasets
    import pyarrow

    if not files:
        raise UserError(f"No file matches {path}.")
    suffixes = {file.suffix for file in files}
    if len(suffixes) > 1 or not suffixes <= set(SUFFIXES):
        raise UserError(
            f"{path} is not a table that can be read: found {', '.join(sorted(suffixes))}, "
            f"allowed {', '.join(SUFFIXES)}."
        )
    try:
        if suffixes == {".parquet"}:
            rows = datasets.load_dataset("parquet", data_files=[str(f) for f in files], split="train")
        else:
            rows = datasets.concatenate_datasets([_read_text(file) for file in files])
    except (
        pyarrow.ArrowException,
        datasets.exceptions.DatasetGenerationError,
        UnicodeDecodeError,
        json.JSONDecodeError,
    ) as error:
        raise UserError(f"{path} cannot be read as a {suffixes.pop()} table: {error.__cause__ or error}") from error
    root = files[0].parent.absolute()
    return rows, _identity([file.absolute() for file in files], root), root


def _read_text(file: Path) -> Dataset:
    """Read a CSV, JSON (a list of objects) or JSONL table into memory: it holds paths, not images."""
    import datasets

    if file.suffix == ".csv":
        return datasets.Dataset(datasets.table.InMemoryTable(_read_csv(file)))
    records = json.loads(file.read_text("utf-8")) if file.suffix == ".json" else list(_json_lines(file))
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(
            f"{file} must hold one object per pair, {'in a list' if file.suffix == '.json' else 'each on a line'}."
        )
    names = list(dict.fromkeys(name for record in records for name in record))
    return datasets.Dataset.from_dict({name: [record.get(name) for record in records] for name in names})


def _json_lines(file: Path) -> Iterator[Any]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                if line.strip():
                    yield json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{file}, line {number}, is not JSON: {error}") from error


def _read_csv(file: Path) -> pyarrow.Table:
    import pyarrow
    from pyarrow import csv

    texts = (
        "prompt",
        "chosen_prompt",
        "rejected_prompt",
        "caption",
        "caption_0",
        "caption_1",
        "chosen",
        "rejected",
        "jpg_0",
        "jpg_1",
        "user_id",
    )
    return csv.read_csv(
        file,
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(column_types=dict.fromkeys(texts, pyarrow.string())),
    )


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


def _leave_undecoded(rows: Dataset, name: str, root: Path) -> tuple[Dataset, list[str | None]]:
    """Switch decoding off for an image column and make its paths absolute; also return the paths, if it holds any."""
    import datasets

    if isinstance(rows.features[name], datasets.Image):
        rows = rows.cast_column(name, datasets.Image(decode=False))
    paths = _read_paths(rows.data.column(name), name)
    if paths is None:
        return rows, []
    paths = [None if path is None else str(root / Path(path).expanduser()) for path in paths]
    return rows.remove_columns([name]).add_column(name, paths), paths


def _read_paths(cells: pyarrow.ChunkedArray, name: str) -> list[str | None] | None:
    """Read the paths in an image column; None if it holds the files themselves, which are not read."""
    from pyarrow import compute, types

    kind = cells.type
    if types.is_string(kind) or types.is_large_string(kind):
        return cells.to_pylist()
    if types.is_binary(kind) or types.is_large_binary(kind):
        return None
    fields = {field.name for field in kind} if types.is_struct(kind) else set()
    if not fields & {"bytes", "path"}:
        raise UserError(
            f"The column `{name}` holds {kind}; allowed are image features of `datasets`, the bytes of image files, "
            "and paths."
        )
    embedded = "bytes" in fields and compute.any(compute.is_valid(compute.struct_field(cells, "bytes"))).as_py()
    return None if embedded or "path" not in fields else compute.struct_field(cells, "path").to_pylist()
