"""Score tables: one row per image or clip and scorer, kept beside the media as `scores.parquet`.

A row is kept for as long as its image, its prompt and the scorer's provenance stay what they were; the provenance of
each scorer is in the file's metadata. What was scored once is also in the cache (see `judging`), so that several
processes can share the work and a kill loses little; the table is merged, under a lock, when all is scored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from diffpo.disk.files import write_file
from diffpo.disk.lock import sole_writer
from diffpo.disk.progress import stderr_console
from diffpo.disk.rows import Row, RowStore
from diffpo.errors import UserError
from diffpo.media.folder import SCORES, Media, check_inside, home_of, read_media, scores_file
from diffpo.media.frames import Clip
from diffpo.scorers.base import Scorer
from diffpo.scorers.judging import Judge, judge_media, key_of

FORMAT = 1
"""Raise it when the meaning of kept scores changes."""
COMMAND = "diffpo score"
WAIT = 60.0
"""Seconds to wait while another command writes its scores: it takes moments."""
OF_FRAMES = "@frames"
"""Behind the name of a scorer of images that judged clips, in score tables and in all that is made of them."""
_METADATA = b"diffpo"


@dataclass(frozen=True, kw_only=True)
class ScoreRow(Media):
    """One score of an image or clip."""

    scorer: str
    score: float
    digest: str = ""
    """Of the image file: a row of another image under the same name is not reused."""

    @staticmethod
    def of(item: Media, scorer: str, score: float, digest: str = "") -> ScoreRow:
        """Score an image."""
        return ScoreRow(**asdict(item), scorer=scorer, score=score, digest=digest)


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

    def called(self, scorer: str) -> str:
        """What a scorer is called here, which may have judged clips frame by frame."""
        return called(scorer, self.scorers)

    @property
    def models(self) -> list[str]:
        """Labels of the models, in the order of the rows."""
        return list(dict.fromkeys(row.model for row in self.rows))


def score_folder(folder: str | Path, scorers: Sequence[Scorer], *, console: Console | None = None) -> ScoreTable:
    """Score images and clips and write the scores beside them; what was scored before is not scored again.

    Each is decoded once for all scorers. One that cannot be decoded is left out, counted and named.

    Args:
        folder: A media folder, any folder of images with prompts, or a table of paths and prompts (see `found_media`).
        scorers: Their names must differ.
        console: Where to show progress; standard error by default.

    Returns:
        All rows of the folder: the asked scorers first, then others that were there.

    Raises:
        UserError: If the folder, all images, a prompt or a scorer's weights are not what they should be, a score is not
            a number, or the place cannot be written.
    """
    console = console or stderr_console()
    source, media = Path(folder), read_media(folder)
    judges = _judges(source, media, scorers)
    with sole_writer(scores_file(source), COMMAND, wait=WAIT):
        pass  # a place that cannot be written is missed before the work
    judged = judge_media(home_of(source), media, list(judges.values()), "Scoring", console=console)
    left_out = judged.left_out
    if len(left_out) == len(media):
        raise UserError(f"none of the {len(media)} images of {source} can be read: {next(iter(left_out.values()))}")
    whole = [(item, judged.contents[item.file]) for item in media if item.file in judged.contents]
    made = [
        ScoreRow.of(item, name, judge[judge.key(content, item)].values["score"], content)
        for name, judge in judges.items()
        for item, content in whole
    ]
    records = {scored_as(scorer, media): provenance_of(scorer, media) for scorer in scorers}
    table = merge_scores(source, media, judged.contents, made, records)
    if left_out:
        lines = [f"{source}: {len(left_out)} of {len(media)} images are left out:", *left_out.values()]
        console.print("\n  ".join(lines), style="yellow", highlight=False, markup=False, soft_wrap=True)
    return replace(table, left_out=left_out)


def score_share(
    folder: str | Path, scorers: Sequence[Scorer], *, console: Console | None = None, rank: int, world: int
) -> None:
    """Score what falls to one of several processes; `score_folder`, on one of them, then finds all of it.

    Args and errors are those of `score_folder`; process `rank` of `world` scores every so many images.
    """
    source, media = Path(folder), read_media(folder)
    judges = _judges(source, media, scorers).values()
    judge_media(home_of(source), media, [*judges], "Scoring", console=console, rank=rank, world=world)


def merge_scores(
    source: Path,
    media: Sequence[Media],
    contents: Mapping[str, str],
    made: Sequence[ScoreRow],
    provenance: Mapping[str, dict[str, Any]],
) -> ScoreTable:
    """Write scores into the table beside some media; what others wrote there meanwhile stays.

    Args:
        source: The media folder, or the table of paths and prompts.
        media: All that is there: rows of other files go.
        contents: What files hold (see `Judged`), as far as it is known: rows of other content go.
        made: The scores; they are written first. Those that the table has of the same scorers go.
        provenance: Of these scorers, by name.

    Raises:
        UserError: The table cannot be read or written.
    """
    path, by_file = scores_file(source), {item.file: item for item in media}
    with sole_writer(path, COMMAND, wait=WAIT):
        earlier = _read_earlier(source)
        rows = list(made)
        for row in earlier.rows:
            item = by_file.get(row.file)
            if row.scorer in provenance or item is None or (row.prompt, row.frames) != (item.prompt, item.frames):
                continue
            if row.digest in ("", contents.get(row.file, row.digest)):
                rows.append(ScoreRow.of(item, row.scorer, row.score, row.digest))
        others = {name: record for name, record in earlier.provenance.items() if name not in provenance}
        table = ScoreTable(rows, {**provenance, **others})
        write_scores(path, table)
    return table


def called(scorer: str, names: Collection[str]) -> str:
    """Which of the names in a table somebody means who names a scorer."""
    return scorer if scorer in names or scorer + OF_FRAMES not in names else scorer + OF_FRAMES


def scored_as(scorer: Scorer, media: Iterable[Media]) -> str:
    """What a scorer's scores of some media are called: a clip that is judged frame by frame is not judged as a clip."""
    return scorer.name + OF_FRAMES if _judges_frames(scorer, media) else scorer.name


def provenance_of(scorer: Scorer, media: Iterable[Media]) -> dict[str, Any]:
    """What decides a scorer's scores of some media: also how clips are judged, where there are clips."""
    return scorer.provenance | ({"clips": "mean over frames"} if _judges_frames(scorer, media) else {})


def _judges_frames(scorer: Scorer, media: Iterable[Media]) -> bool:
    return not scorer.takes_frames and any(item.frames > 1 for item in media)


def read_scores(path: str | Path) -> ScoreTable:
    """Read the scores of a media folder, or a parquet file with the same columns.

    Raises:
        UserError: If there is none, it lacks a column, or a score is not a number.
    """
    path = Path(path)
    file = path / SCORES if path.is_dir() else path
    if not file.is_file():
        remedy = f" Run `diffpo score {path}` first." if path.is_dir() else ""
        raise UserError(f"there is no {file}.{remedy}")
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        remedy = "Delete it and run `diffpo score` again."
        raise UserError(f"{file} is no readable score table ({error}). {remedy}") from error
    wanted = [f.name for f in fields(ScoreRow) if f.name in table.column_names]
    if missing := [f.name for f in fields(ScoreRow) if f.name not in wanted and f.default is MISSING]:
        raise UserError(f"{file} lacks the columns {', '.join(missing)}; it has {', '.join(table.column_names)}.")
    try:
        columns = table.select(wanted).cast(pa.schema([_schema().field(name) for name in wanted]))
        provenance = json.loads((table.schema.metadata or {}).get(_METADATA, b"{}"))
    except (pa.ArrowException, ValueError) as error:
        raise UserError(f"{file} is no score table: {error}. Run `diffpo score` again.") from error
    empty = [name for name in wanted if columns[name].null_count and name not in ("seed", "fps", "score")]
    if empty or not isinstance(provenance, dict) or not all(isinstance(of, dict) for of in provenance.values()):
        what = f"empty cells in {', '.join(empty)}" if empty else "no provenance"
        raise UserError(f"{file} is no score table: it has {what}. Run `diffpo score` again.")
    rows = [ScoreRow(**record) for record in columns.to_pylist()]
    if file.name == SCORES:  # of a media folder; a table given by itself may name images anywhere
        check_inside(file.parent, {row.file for row in rows}, file)
    for row in rows:
        _check_number(row.score, row.scorer, file.parent / row.file)
    return ScoreTable(rows, provenance)


def _schema() -> pa.Schema:
    types = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
    columns = sorted(fields(ScoreRow), key=lambda f: f.name in ("frames", "fps"))  # what clips have comes last
    return pa.schema([(f.name, types[str(f.type).removesuffix(" | None")]) for f in columns])


def write_scores(path: Path, table: ScoreTable) -> None:
    """Write a table atomically."""
    schema = _schema().with_metadata({_METADATA: json.dumps(table.provenance)})
    content = pa.Table.from_pylist([asdict(row) for row in table.rows], schema=schema)
    write_file(path, lambda file: pq.write_table(content, file))


def _judges(source: Path, media: Sequence[Media], scorers: Sequence[Scorer]) -> dict[str, Judge]:
    """The scorers, by name; each knows the scores that the table beside the media has of it."""
    names = [scorer.name for scorer in scorers]
    if not names:
        raise UserError("name at least one scorer.")
    if len(set(names)) < len(names):
        asked = ", ".join(names)
        raise UserError(f"each scorer can be asked once, got {asked}: a table holds one score of a scorer per image.")
    earlier, judges = _read_earlier(source), {}
    for scorer in scorers:
        name = scored_as(scorer, media)
        question = _prompt_and_rate if scorer.reads_rate else attrgetter("prompt")
        same = earlier.provenance.get(name) == provenance_of(scorer, media)
        known = {
            key_of(row.digest, row.frames, question(row)): Row({"score": row.score})
            for row in earlier.rows
            if same and row.scorer == name and row.digest
        }
        store = RowStore("scores", {"format": FORMAT, "scorer": scorer.provenance})
        judges[name] = Judge(store, partial(_score, scorer), question, known)
    return judges


def _prompt_and_rate(item: Media) -> str:
    return f"{item.fps} frames per second: {item.prompt}"


def _score(scorer: Scorer, clips: Sequence[Clip], media: Sequence[Media]) -> Iterator[Row]:
    scores = scorer.judge(clips, [item.prompt for item in media]).tolist()
    for item, score in zip(media, scores, strict=True):
        _check_number(score, scorer.name, Path(item.file))
        yield Row({"score": score})


def _read_earlier(source: Path) -> ScoreTable:
    """The table beside some media; empty where there is none."""
    return read_scores(path) if (path := scores_file(source)).is_file() else ScoreTable([])


def _check_number(score: float | None, scorer: str, file: Path) -> None:
    if score is None or not math.isfinite(score):
        raise UserError(
            f"{scorer} scored {file} as {score}: no number to compare with. Score it again, in float32 if it was not."
        )
