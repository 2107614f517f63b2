"""Score tables: one row per image and scorer, kept beside the images as `scores.parquet`.

A row is kept for as long as its image, its prompt and the scorer's provenance stay what they were; the provenance of
each scorer is in the file's metadata.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffpo.errors import UserError
from diffpo.evaluate.media import SCORES, Media, decode, read_file, read_media, write_atomic
from diffpo.evaluate.progress import progress_bar, stderr_console

if TYPE_CHECKING:
    from rich.console import Console

    from diffpo.scorers.base import Scorer

_METADATA = b"diffpo"
_CHUNK = 64
_SAVE_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One score."""

    file: str
    prompt: str
    prompt_id: int
    seed: int
    model: str
    scorer: str
    score: float
    digest: str = ""
    """Of the image file: a row of another image under the same name is not reused."""


@dataclass(frozen=True)
class ScoreTable:
    """Scores, and where they come from."""

    rows: list[ScoreRow]
    provenance: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By scorer."""

    @property
    def scorers(self) -> list[str]:
        """Names of the scorers, in the order of the rows."""
        return list(dict.fromkeys(row.scorer for row in self.rows))

    @property
    def models(self) -> list[str]:
        """Labels of the models, in the order of the rows."""
        return list(dict.fromkeys(row.model for row in self.rows))


def score_folder(folder: str | Path, scorers: Sequence[Scorer], *, console: Console | None = None) -> ScoreTable:
    """Score a media folder and write its `scores.parquet`; what was scored before is not scored again.

    Each image is decoded once for all scorers.

    Args:
        folder: A media folder.
        scorers: Their names must differ.
        console: Where to show progress; standard error by default.

    Returns:
        All rows of the folder: the asked scorers first, then others that were there already.

    Raises:
        UserError: If the folder, an image, a prompt or a scorer's weights are not what they should be, or a score is
            not a number.
    """
    folder = Path(folder)
    media = read_media(folder)
    if not scorers:
        raise UserError("name at least one scorer.")
    assert len({scorer.name for scorer in scorers}) == len(scorers)
    provenance = {scorer.name: scorer.provenance for scorer in scorers}
    earlier = read_scores(folder) if (folder / SCORES).is_file() else ScoreTable([])
    stale = {name for name, record in provenance.items() if earlier.provenance.get(name) != record}
    done = {(row.scorer, row.file): row for row in earlier.rows if row.scorer not in stale}
    rows: dict[tuple[str, str], ScoreRow] = {}
    names = list(dict.fromkeys([*provenance, *(row.scorer for row in earlier.rows)]))

    def save(rows: dict[tuple[str, str], ScoreRow]) -> ScoreTable:
        ordered = [rows[name, item.file] for name in names for item in media if (name, item.file) in rows]
        known = {**earlier.provenance, **provenance}
        table = ScoreTable(ordered, {name: known[name] for name in names if name in known})
        write_scores(folder / SCORES, table)
        return table

    saved = time.monotonic()
    with progress_bar(console or stderr_console()) as bar:
        task = bar.add_task("score", total=len(media))
        for start in range(0, len(media), _CHUNK):
            chunk = media[start : start + _CHUNK]
            rows.update(_score_chunk(folder, chunk, scorers, names, done))
            bar.advance(task, len(chunk))
            if time.monotonic() - saved > _SAVE_SECONDS:
                save({**done, **rows})  # what is still ahead is checked when it is reached, here or in the next call
                saved = time.monotonic()
    return save(rows)


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
    missing = [f.name for f in fields(ScoreRow) if f.name not in wanted and f.name != "digest"]
    if missing:
        raise UserError(f"{file} lacks the columns {', '.join(missing)}; it has {', '.join(table.column_names)}.")
    rows = [ScoreRow(**record) for record in table.select(wanted).to_pylist()]
    for row in rows:
        _check_number(row.score, row.scorer, file.parent / row.file)
    return ScoreTable(rows, json.loads((table.schema.metadata or {}).get(_METADATA, b"{}")))


def write_scores(path: Path, table: ScoreTable) -> None:
    """Write a table atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
    schema = pa.schema(
        [pa.field(f.name, types[str(f.type)]) for f in fields(ScoreRow)],
        metadata={_METADATA: json.dumps(table.provenance)},
    )
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in table.rows], schema=schema), buffer)
    write_atomic(path, buffer.getvalue())


def _score_chunk(
    folder: Path,
    chunk: Sequence[Media],
    scorers: Sequence[Scorer],
    names: Sequence[str],
    done: dict[tuple[str, str], ScoreRow],
) -> dict[tuple[str, str], ScoreRow]:
    """Rows of a chunk: those in `done` that still hold, the others scored."""
    data = [read_file(folder, item) for item in chunk]
    digests = [hashlib.blake2b(content, digest_size=8).hexdigest() for content in data]
    rows = {}
    for name in names:
        for item, digest in zip(chunk, digests, strict=True):
            row = done.get((name, item.file))
            if row is not None and (row.digest, row.prompt) == (digest, item.prompt):
                rows[name, item.file] = _row(item, name, row.score, digest)
    images: dict[int, Any] = {}
    for scorer in scorers:
        todo = [i for i, item in enumerate(chunk) if (scorer.name, item.file) not in rows]
        if not todo:
            continue
        images |= {i: decode(data[i], folder / chunk[i].file) for i in todo if i not in images}
        scores = scorer.score([images[i] for i in todo], [chunk[i].prompt for i in todo]).tolist()
        for i, score in zip(todo, scores, strict=True):
            _check_number(score, scorer.name, folder / chunk[i].file)
            rows[scorer.name, chunk[i].file] = _row(chunk[i], scorer.name, score, digests[i])
    return rows


def _row(item: Media, scorer: str, score: float, digest: str) -> ScoreRow:
    return ScoreRow(**asdict(item), scorer=scorer, score=score, digest=digest)


def _check_number(score: float | None, scorer: str, file: Path) -> None:
    if score is None or not math.isfinite(score):
        raise UserError(
            f"{scorer} scored {file} as {score}: no number to compare with. Score it again, in float32 if it was not."
        )
