"""Bring pairs that have no random access, or no columns, into a table: `diffpo data import`.

    FOLDER/train-00000-of-00002.parquet, ...   TRL's columns, with the image files inside; `data.name=pairs` reads them
    FOLDER/import.json                         where they come from and what became of the rows

Every file is written whole or not at all, into `.FOLDER.unfinished`, which gets its name when all are there. So a run
that was killed loses at most one file, and the same command continues.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow
from datasets import Features, Image, Value, Video
from pyarrow import parquet

from diffpo.core.block import Block
from diffpo.curate.imports import folders, votes, webdataset
from diffpo.curate.imports.pairs import ImportedPair, Inventory, Part, identity_of
from diffpo.curate.imports.report import ImportReport, name_some
from diffpo.disk.ahead import WORKERS, ahead, groups
from diffpo.disk.files import write_file
from diffpo.disk.lock import sole_writer
from diffpo.disk.progress import track
from diffpo.errors import UserError
from diffpo.media.frames import BrokenImage, look, open_footage, read_bytes

ABOUT = "import.json"
NOTE = b"diffpo"
"""The key in a parquet file's metadata under which its identity and counts stand."""
GROUP_ROWS = 32
"""So many rows are in memory at a time, and in a row group."""


@dataclass(frozen=True)
class ImportLayout:
    """A layout that is brought into a table before it is used."""

    looks: str
    """What it looks like."""
    fits: Callable[[str], bool]
    """Whether something given by its path looks like it."""
    read: Callable[[str], Inventory]
    """Find its pairs."""


LAYOUTS = {
    "hpdv2": ImportLayout("HPDv2's train.json or test.json", votes.fits_hpdv2, votes.read_hpdv2),
    "open-image-preferences": ImportLayout(
        "a table of image_1, image_2, prompt and votes",
        votes.fits_open_image_preferences,
        votes.read_open_image_preferences,
    ),
    "twin-folders": ImportLayout(
        "folders w/ and l/ (win/lose, chosen/rejected) with equal names", folders.fits_twins, folders.read_twins
    ),
    "suffixes": ImportLayout("a folder of NAME_w, NAME_l, NAME_e", folders.fits_suffixes, folders.read_suffixes),
    "json-list": ImportLayout("a .json list of image_0, pref_0, image_1, pref_1", folders.fits_list, folders.read_list),
    "webdataset": ImportLayout(
        "tars of KEY.chosen.jpg, KEY.rejected.jpg, KEY.json, or of KEY.jpg_0.jpg, ...", webdataset.fits, webdataset.read
    ),
}
"""Every layout that `diffpo data import` reads, by its name."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions(Block):
    """What to make of the pairs."""

    layout: str | None = None
    """A name of `LAYOUTS`; None chooses the one that fits."""
    ties: Literal["drop", "keep"] = "drop"
    """Pairs of which neither was preferred: `drop` them, or `keep` them with preference 0.5."""
    labels: Literal["hard", "soft"] = "hard"
    """`soft`: the share of votes for the chosen image becomes `preference`. `hard`: only its order is kept."""
    images: Literal["embed", "link"] = "embed"
    """`embed`: copy the image files into the table. `link`: keep the absolute paths of images that are files."""


def describe_layouts() -> str:
    """List the layouts, for messages."""
    return "; ".join(f"{name}: {layout.looks}" for name, layout in LAYOUTS.items())


def fitting_imports(source: str) -> list[str]:
    """Names of the layouts that something looks like."""
    return [name for name, layout in LAYOUTS.items() if layout.fits(source)]


def import_table(source: str, out: Path, options: ImportOptions) -> ImportReport:
    """Write the pairs of a source as a table; the same call continues after a kill.

    Args:
        source: A folder, file, glob or Hub id, in one of `LAYOUTS`.
        out: The folder to write.
        options: What to make of the pairs.

    Raises:
        UserError: The layout is unknown or not clear, nothing can be read, no pair is left, or `out` holds something
            else.
    """
    found = LAYOUTS[_choose(source, options.layout)].read(source)
    if not found.parts:
        raise UserError(f"{source} holds no pair{name_some('; images without a partner: ', found.unpaired)}.")
    out = out.expanduser().absolute()
    with sole_writer(out, "diffpo data import"):
        return _write_parts(source, found, out, options)


def _write_parts(source: str, found: Inventory, out: Path, options: ImportOptions) -> ImportReport:
    names = [f"train-{i:05d}-of-{len(found.parts):05d}.parquet" for i in range(len(found.parts))]
    folder, report = _place(out, names), ImportReport(unpaired=found.unpaired)
    schema = _schema(found, options)
    settings = repr((options.ties, options.labels, options.images, found.columns))
    for part, name in zip(track(found.parts, "Importing", len(names)), names, strict=True):
        path, identity = folder / name, identity_of(settings, part.identity)
        if not path.exists():
            write_file(path, partial(_write_part, part=part, schema=schema, options=options, identity=identity))
        report.add(_read_note(path, identity))
    if not report.pairs:
        if folder != out:
            shutil.rmtree(folder)
        raise UserError(f"No pair of {source} can be used: {'; '.join(report.lines())}.")
    about = {"source": source, "options": asdict(options), "report": asdict(report)}
    write_file(folder / ABOUT, json.dumps(about, indent=2, ensure_ascii=False))
    if folder != out:
        folder.rename(out)
    return report


def _choose(source: str, layout: str | None) -> str:
    if layout is not None and layout not in LAYOUTS:
        raise UserError(f"There is no layout {layout!r}; there are {describe_layouts()}.")
    if layout is not None and not LAYOUTS[layout].fits(source):
        raise UserError(f"{source} does not look like {layout}: that is {LAYOUTS[layout].looks}.")
    fitting = [layout] if layout else fitting_imports(source)
    if len(fitting) == 1:
        return fitting[0]
    problem = f"could be {' or '.join(fitting)}: choose one with --layout" if fitting else "looks like none of these"
    raise UserError(
        f"{source} {problem}. Layouts: {describe_layouts()}. Tables that training reads as they are need no import: "
        "`diffpo data inspect` says so."
    )


def _place(out: Path, names: list[str]) -> Path:
    """Choose the folder to write into: that of an earlier call, if it imported the same."""
    folder = out if out.exists() else out.with_name(f".{out.name}.unfinished")
    if out.exists() and not (out / ABOUT).is_file():
        raise UserError(f"{out} is there and is no import. Choose a new folder for --out.")
    folder.mkdir(parents=True, exist_ok=True)
    if any(path.name not in names for path in folder.glob("*.parquet")):
        raise _other_import(folder)
    return folder


def _other_import(folder: Path) -> UserError:
    return UserError(
        f"{folder} holds an import of other data, or with other options. Remove it, or choose another folder for --out."
    )


def _read_note(path: Path, identity: str) -> dict[str, Any]:
    """Read the counts of a file."""
    try:
        note = json.loads((parquet.read_metadata(path).metadata or {}).get(NOTE, b"{}"))
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and run the command again.") from error
    if note.get("identity") != identity:
        raise _other_import(path.parent)
    return note["counts"]


def _schema(found: Inventory, options: ImportOptions) -> pyarrow.Schema:
    graded = options.labels == "soft" or options.ties == "keep"
    kind = Video if _are_clips(found) else Image
    features = {"prompt": Value("string"), "chosen": kind(), "rejected": kind()}
    features |= {"preference": Value("float64")} if graded else {}
    features |= {name: Value("int64" if name.endswith("_seed") else "string") for name in found.columns}
    return Features(features).arrow_schema


def _are_clips(found: Inventory) -> bool:
    """Whether the first pair is one of clips: both are kept alike, but other programs want to know what a column is."""
    first = next(iter(found.parts[0].read()), None)
    for side in first.sides if first else ():
        with contextlib.suppress(BrokenImage), open_footage(side.image) as footage:
            return footage.moving
    return False


def _write_part(file: BinaryIO, *, part: Part, schema: pyarrow.Schema, options: ImportOptions, identity: str) -> None:
    """Write one parquet file, with its identity and counts in the metadata."""
    counts = ImportReport()
    with parquet.ParquetWriter(file, schema) as writer:
        for group in groups(_rows(part, schema, options, counts), GROUP_ROWS):  # never an empty one
            writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))
        values = {name: value for name, value in asdict(counts).items() if name != "unpaired"}
        writer.add_key_value_metadata({NOTE: json.dumps({"identity": identity, "counts": values})})


def _rows(part: Part, schema: pyarrow.Schema, options: ImportOptions, counts: ImportReport) -> Iterator[dict[str, Any]]:
    """Yield the rows that can be used, and count all."""
    make = partial(_row, names=schema.names, options=options)
    for row, counted in ahead(make, part.read(), workers=WORKERS, depth=4 * WORKERS):
        counts.add({"rows": 1} | counted)
        if row is not None:
            yield row


def _row(
    pair: ImportedPair, names: Sequence[str], options: ImportOptions
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Make the row of a pair, None if it is dropped; and what the pair adds to the report."""
    if pair.preference is None:
        return None, {"unlabelled": 1}
    if pair.prompt is None:
        return None, {"promptless": 1}
    if pair.preference == 0.5 and options.ties == "drop":
        return None, {"ties": 1}
    cells = []
    for side in pair.ordered:
        try:
            cells.append(_cell(side.image, options))
        except BrokenImage as error:
            return None, {"broken": [(pair.name, f"{side.name}: {error}")]}
    share = max(pair.preference, 1 - pair.preference)
    label = share if options.labels == "soft" or share == 0.5 else 1.0
    row = {"prompt": pair.prompt, "chosen": cells[0], "rejected": cells[1], "preference": label} | pair.optional
    left_out = dict.fromkeys(row.keys() - {"preference", *names}, 1)
    counted = {"pairs": 1, "ties": share == 0.5, "graded": share not in (0.5, 1), "left_out": left_out}
    return {name: value for name, value in row.items() if name in names}, counted


def _cell(image: Any, options: ImportOptions) -> dict[str, Any]:
    """Make an image cell of a file, once it can be decoded."""
    if isinstance(image, dict):
        content, path = image.get("bytes"), image.get("path")
    else:  # a text is no path: a tar may not name files outside of it
        content = image if isinstance(image, bytes) else None
        path = str(image) if isinstance(image, Path) else None
    if options.images == "link":
        if content is not None:
            raise UserError(
                "--images link needs images that are files of their own; these are inside a tar or a table."
            )
        look(path)
        return {"bytes": None, "path": path}
    if path is not None and Path(path).is_dir():
        raise UserError(f"{path} is a folder of frames, which a table names but does not hold: give --images link.")
    if content is None and path is not None:
        try:
            content = read_bytes(path)
        except OSError as error:
            raise BrokenImage(error.strerror or str(error)) from error
    look(content)
    return {"bytes": content, "path": None if path is None else Path(path).name}
