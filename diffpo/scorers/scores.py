"""Score tables: one row per image and scorer, kept beside the images as `scores.parquet`.

A row is kept for as long as its image, its prompt and the scorer's provenance stay what they were; the provenance of
each scorer is in the file's metadata.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import io
import json
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffpo.disk.files import write_file
from diffpo.disk.progress import progress, stderr_console
from diffpo.errors import UserError
from diffpo.media.folder import SCORES, Media, check_inside, decode_file, home_of, read_file, read_media, scores_file
from diffpo.media.frames import BrokenImage

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import Console

    from diffpo.scorers.base import Scorer

_METADATA = b"diffpo"
_CHUNK = 64
_SAVE_EVERY = 10.0  # times as long as the last save took: saving costs a tenth at most
_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One score."""

    file: str
    prompt: str
    prompt_id: int
    seed: int | None
    """None: unknown."""
    model: str
    scorer: str
    score: float
    digest: str = ""
    """Of the image file: a row of another image under the same name is not reused."""
    frames: int = 1
    """An image is a clip of one frame."""
    fps: float | None = None
    """Frames per second of a clip."""

    @staticmethod
    def of(item: Media, scorer: str, score: float, digest: str = "") -> ScoreRow:
        """Score an image."""
        return ScoreRow(
            file=item.file,
            prompt=item.prompt,
            prompt_id=item.prompt_id,
            seed=item.seed,
            model=item.model,
            scorer=scorer,
            score=score,
            digest=digest,
            frames=item.frames,
            fps=item.fps,
        )


@dataclass(frozen=True)
class ScoreTable:
    """Scores, and where they come from."""

    rows: list[ScoreRow]
    provenance: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By scorer."""
    left_out: dict[str, str] = field(default_factory=dict, compare=False)
    """Images that the last call could not read, and why; not kept on disk."""

    @property
    def scorers(self) -> list[str]:
        """Names of the scorers, in the order of the rows."""
        return list(dict.fromkeys(row.scorer for row in self.rows))

    @property
    def models(self) -> list[str]:
        """Labels of the models, in the order of the rows."""
        return list(dict.fromkeys(row.model for row in self.rows))


Rows = dict[tuple[str, str], ScoreRow]
"""By scorer and file."""


def score_folder(
    folder: str | Path,
    scorers: Sequence[Scorer],
    *,
    console: Console | None = None,
    rank: int = 0,
    world: int = 1,
) -> ScoreTable:
    """Score images and write the scores beside them; what was scored before is not scored again.

    Each image is decoded once for all scorers. One that cannot be decoded is left out, counted and named.

    Args:
        folder: A media folder, any folder of images with prompts, or a table of paths and prompts (see `found_media`).
        scorers: Their names must differ.
        console: Where to show progress; standard error by default.
        rank: Which of several processes this is. Each scores every so many images and keeps them in a file of its own;
            a last call of one process alone brings them together.
        world: How many processes there are.

    Returns:
        All rows of the folder (of this process's share of it): the asked scorers first, then others that were there.

    Raises:
        UserError: If the folder, all images, a prompt or a scorer's weights are not what they should be, or a score is
            not a number.
    """
    console = console or stderr_console()
    source, media = Path(folder), read_media(folder)[rank::world]
    _check_names(scorers)
    kept = Kept.read(source, {scorer.name: scorer.provenance for scorer in scorers})
    path = kept.path if world == 1 else kept.part(rank, world)
    rows: Rows = {}
    left_out: dict[str, str] = {}
    saved, cost = time.monotonic(), 0.0
    with progress("Scoring", len(media), console=console) as advance:
        for start in range(0, len(media), _CHUNK):
            chunk = media[start : start + _CHUNK]
            rows.update(_score_chunk(home_of(source), chunk, scorers, kept, left_out))
            advance(len(chunk))
            if time.monotonic() - saved > _SAVE_EVERY * cost:
                began = time.monotonic()
                kept.save(path, media, kept.rows | rows)  # what is ahead is checked when it is reached
                saved = time.monotonic()
                cost = saved - began
    if left_out and len(left_out) == len(media):
        raise UserError(f"none of the {len(media)} images of {source} can be read: {next(iter(left_out.values()))}")
    table = kept.save(path, media, rows)
    if world == 1:
        kept.remove_parts()
    if left_out:
        lines = [f"{source}: {len(left_out)} of {len(media)} images are left out:", *left_out.values()]
        console.print("\n  ".join(lines), style="yellow", highlight=False, markup=False, soft_wrap=True)
    return dataclasses.replace(table, left_out=left_out)


def read_scores(path: str | Path) -> ScoreTable:
    """Read the scores of a media folder, or a parquet file with the same columns.

    Raises:
        UserError: If there is none, it lacks a column, or a score is not a number.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    file = path / SCORES if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"there is no {file}. Run `diffpo score {path}` first." if path.is_dir() else f"there is no {file}."
        )
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{file} is no readable score table ({error}). Delete it and run `diffpo score` again."
        ) from error
    wanted = [f.name for f in fields(ScoreRow) if f.name in table.column_names]
    missing = [f.name for f in fields(ScoreRow) if f.name not in wanted and f.default is MISSING]
    if missing:
        raise UserError(f"{file} lacks the columns {', '.join(missing)}; it has {', '.join(table.column_names)}.")
    rows = [ScoreRow(**record) for record in table.select(wanted).to_pylist()]
    if file.name == SCORES:  # of a media folder; a table given by itself may name images anywhere
        check_inside(file.parent, {row.file for row in rows}, file)
    for row in rows:
        _check_number(row.score, row.scorer, file.parent / row.file)
    return ScoreTable(rows, json.loads((table.schema.metadata or {}).get(_METADATA, b"{}")))


def write_scores(path: Path, table: ScoreTable) -> None:
    """Write a table atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
    schema = pa.schema(
        [pa.field(f.name, types[str(f.type).removesuffix(" | None")]) for f in fields(ScoreRow)],
        metadata={_METADATA: json.dumps(table.provenance)},
    )
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in table.rows], schema=schema), buffer)
    write_file(path, buffer.getvalue())


@dataclass(frozen=True)
class Kept:
    """What earlier calls found and wrote: `scores.parquet`, and parts that several processes left."""

    path: Path
    rows: Rows
    """That were made as the asked scorers would make them now, or by others."""
    provenance: dict[str, dict[str, Any]]
    """By scorer: the asked ones first."""

    @staticmethod
    def read(source: Path, asked: dict[str, dict[str, Any]]) -> Kept:
        """Read what is there; scores of an asked scorer that was another one then are forgotten."""
        path = scores_file(source)
        tables = [read_scores(file) for file in (path, *_parts(path)) if file.is_file()]
        known = dict(asked)
        for table in tables:
            known = {name: {} for name in (*known, *table.scorers)} | table.provenance | known
        rows = {
            (row.scorer, row.file): row
            for table in reversed(tables)
            for row in table.rows
            if table.provenance.get(row.scorer, {}) == known[row.scorer]
        }
        return Kept(path, rows, known)

    def part(self, rank: int, world: int) -> Path:
        """The file of one of several processes."""
        return self.path.with_name(f"{self.path.stem}-{rank:05d}-of-{world:05d}.parquet")

    def remove_parts(self) -> None:
        """Remove the processes' files, once all is in one."""
        for file in _parts(self.path):
            file.unlink()

    def save(self, path: Path, media: Sequence[Media], rows: Rows) -> ScoreTable:
        """Write the rows of these images, scorer by scorer."""
        ordered = [rows[name, item.file] for name in self.provenance for item in media if (name, item.file) in rows]
        used = {row.scorer for row in ordered}
        table = ScoreTable(
            ordered, {name: record for name, record in self.provenance.items() if record and name in used}
        )
        write_scores(path, table)
        return table


def _parts(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{glob.escape(path.stem)}-*-of-*.parquet"))


def _score_chunk(
    home: Path, chunk: Sequence[Media], scorers: Sequence[Scorer], kept: Kept, left_out: dict[str, str]
) -> Rows:
    """Rows of a chunk: those kept that still hold, the others scored; `left_out` gets the images that are broken."""
    data = [read_file(home, item) for item in chunk]
    digests = [hashlib.blake2b(content, digest_size=8).hexdigest() for content in data]
    rows: Rows = {}
    for name in kept.provenance:
        for item, digest in zip(chunk, digests, strict=True):
            row = kept.rows.get((name, item.file))
            if row is not None and (row.digest, row.prompt, row.frames) == (digest, item.prompt, item.frames):
                rows[name, item.file] = ScoreRow.of(item, name, row.score, digest)
    missing = [i for i, item in enumerate(chunk) if any((scorer.name, item.file) not in rows for scorer in scorers)]
    images = _decode_all({i: (data[i], home / chunk[i].file) for i in missing}, left_out)
    for scorer in scorers:
        todo = [i for i in images if (scorer.name, chunk[i].file) not in rows]
        if not todo:
            continue
        scores = scorer.score([images[i] for i in todo], [chunk[i].prompt for i in todo]).tolist()
        for i, score in zip(todo, scores, strict=True):
            _check_number(score, scorer.name, home / chunk[i].file)
            rows[scorer.name, chunk[i].file] = ScoreRow.of(chunk[i], scorer.name, score, digests[i])
    return rows


def _decode_all(files: dict[int, tuple[bytes, Path]], left_out: dict[str, str]) -> dict[int, Image]:
    """Decode each file once, by threads."""

    def attempt(data: bytes, path: Path) -> Image | BrokenImage:
        try:
            return decode_file(data, path)
        except BrokenImage as error:
            return error

    with ThreadPoolExecutor(_THREADS) as pool:
        decoded = dict(zip(files, pool.map(lambda file: attempt(*file), files.values()), strict=True))
    left_out |= {str(files[i][1]): str(image) for i, image in decoded.items() if isinstance(image, BrokenImage)}
    return {i: image for i, image in decoded.items() if not isinstance(image, BrokenImage)}


def _check_names(scorers: Sequence[Scorer]) -> None:
    names = [scorer.name for scorer in scorers]
    if not names:
        raise UserError("name at least one scorer.")
    if len(set(names)) < len(names):
        raise UserError(
            f"each scorer can be asked once, got {', '.join(names)}: a table holds one score of a scorer per image."
        )


def _check_number(score: float | None, scorer: str, file: Path) -> None:
    if score is None or not math.isfinite(score):
        raise UserError(
            f"{scorer} scored {file} as {score}: no number to compare with. Score it again, in float32 if it was not."
        )
