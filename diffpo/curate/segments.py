"""Label the segments of pairs of clips: `diffpo data segments`.

    FOLDER/train-00000-of-00001.parquet    the pairs with `segments` and `preference`
    FOLDER/train.answers.jsonl             what was answered about each segment, which a person may correct

`segments` has one label per segment: 1 where the chosen clip is better, -1 where the rejected one is, 0 for a tie. The
clip that is better in more segments is the chosen one (`preference` 1); where they are even, `preference` is 0.5.

What was answered is kept by content, like all that is derived from tables, so that the same command continues after a
kill. A label in the JSONL that a person has changed wins over what a labeller says, whenever the table is written.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diffpo.captioners.base import Labeller, Segment, Verdict
from diffpo.curate.answers import VALUES, Answer, answers_file, read_corrections, read_labels, write_answers
from diffpo.curate.derived import read_tables
from diffpo.curate.lasting import Lasting, read_lasting, segment_frames
from diffpo.curate.score import turn
from diffpo.curate.write import Target, file_of, read_record
from diffpo.data.contents import read_contents
from diffpo.data.encode import BOTH
from diffpo.data.records import Source, Table
from diffpo.disk.files import hash_of
from diffpo.disk.lock import sole_writer
from diffpo.disk.progress import stderr_console
from diffpo.disk.rows import Row, RowStore, as_keys, digest, key_at
from diffpo.errors import UserError

log = logging.getLogger(__name__)

COMMAND = "diffpo data segments"
FORMAT = 1
"""Raise it when the meaning of kept answers changes."""
MOST_UNREADABLE = 0.1
"""The share of segments without a readable answer that is still taken for bad luck; each of these is a tie."""
PATIENCE = 4
"""So many segments without a readable answer are waited for before it is said."""


@dataclass(frozen=True)
class Labelled:
    """What came of it."""

    files: list[Path]
    pairs: int
    counts: Counter[Verdict]
    """How many segments have each label, first and second as in the table that was labelled."""
    corrected: int
    """Labels that a person has changed."""
    left_out: int
    """Pairs without labels."""

    def __str__(self) -> str:
        told = ", ".join(f"{self.counts[verdict]} {verdict}" for verdict in VALUES)
        more = f"; {self.corrected} labels were corrected by hand" if self.corrected else ""
        return f"{self.pairs} pairs, segments: {told}{more}; {self.left_out} pairs without labels are left out"


@dataclass(frozen=True)
class _Pairs:
    """The pairs of a split, and what is known of their clips."""

    table: Table
    keys: np.ndarray
    """`[n]` hash of both clips and the prompt; empty where a clip cannot be used."""
    lasting: list[Lasting | None]
    """How long a row's clips last."""

    @staticmethod
    def of(table: Table, source: Source) -> _Pairs:
        """Measure the clips; rows whose clips cannot be used are named in the log."""
        contents, prompts = [read_contents(table, side) for side in BOTH], table.column("prompt")
        lasting, told = read_lasting(table, source)
        for row, why in told.items():
            log.warning(f"{table.path}: row {table.origin[row]} is left out: {why}")
        keys = as_keys([b""] * len(table))
        for row, clip in enumerate(lasting):
            if clip is not None:
                keys[row] = digest(*(key_at(found.keys, row) for found in contents), prompts[row])
        return _Pairs(table, keys, lasting)


Ask = Callable[[_Pairs], list[Answer | None]]


def label_segments(source: Source, labeller: Labeller, folder: Path, *, fresh: bool = False) -> Labelled:
    """Write the pairs of a source with labels of a labeller, and what it answered.

    Args:
        source: The pairs, ties included: nobody need have judged them. `segment_seconds` is the length of a segment;
            `unequal` says what becomes of clips that do not last equally long.
        labeller: Compares the clips.
        folder: Where the tables are written; see `write.Target`.
        fresh: Whether tables that were made in another way may be replaced. What a person corrected stays.

    Raises:
        UserError: The labeller cannot work or answers something else too often, corrections are of other clips, or the
            folder holds something else. What was answered stays.
    """
    if labeller.fps * source.segment_seconds < 1:
        raise UserError(
            f"{labeller.fps:g} frames per second leave segments of {source.segment_seconds:g} seconds without a frame: "
            "give the labeller a higher fps, or longer segments."
        )
    splits = _read(source)
    kept = {"format": FORMAT, "seconds": source.segment_seconds, **labeller.provenance}
    store = RowStore("segments", kept, rows_per_file=1)
    answer = partial(_ask, labeller=labeller, store=store, seconds=source.segment_seconds)
    return _write(splits, {**kept, **labeller.rule}, folder, answer, fresh=fresh)


def label_by_hand(source: Source, labels: Path, folder: Path, *, fresh: bool = False) -> Labelled:
    """Write the pairs of a source with the labels of a file; see `answers.read_labels` and `label_segments`."""
    splits = _read(source)
    known = {
        key_at(pairs.keys, row).hex(): [pairs.table.cell(row, side) for side in BOTH]
        for pairs in splits.values()
        for row in np.flatnonzero(pairs.keys != b"").tolist()
    }
    given = read_labels(labels, known)

    def answer(pairs: _Pairs) -> list[Answer | None]:
        found = [given.get(key_at(pairs.keys, row).hex()) for row in range(len(pairs.keys))]
        for clip, one in zip(pairs.lasting, found, strict=True):
            if clip is not None and one is not None:
                clip.check(one.labels, one.place)
        return found

    recipe = {"labels": labels.name, "hash": hash_of(labels.read_bytes()), "seconds": source.segment_seconds}
    return _write(splits, recipe, folder, answer, fresh=fresh)


def _read(source: Source) -> dict[str, _Pairs]:
    """Read all pairs, also those that nobody has judged."""
    tables = read_tables(dataclasses.replace(source, ties="keep"))
    return {split: _Pairs.of(table, source) for split, table in tables.items()}


def _ask(pairs: _Pairs, labeller: Labeller, store: RowStore, seconds: float) -> list[Answer | None]:
    """Ask about every pair that was not asked about before, and read all answers."""
    rows = np.flatnonzero(pairs.keys != b"").tolist()
    keys = as_keys([digest(key_at(pairs.keys, row), str(pairs.lasting[row].count)) for row in rows])
    missing = [rows[place] for place in store.missing(keys).tolist()]
    if missing:
        segments = sum(pairs.lasting[row].count for row in missing)
        frames = round(2 * labeller.fps * sum(pairs.lasting[row].seconds for row in missing))
        stderr_console().print(
            f"{pairs.table.path}: {segments} segments of {len(missing)} pairs are asked about, the other "
            f"{len(rows) - len(missing)} pairs are known: {labeller.cost(segments, frames)}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    reading = _Reading(labeller)

    def compute(places: Sequence[int]) -> Iterator[Row]:
        for place in places:
            clip, cells = pairs.lasting[rows[place]], [pairs.table.cell(rows[place], side) for side in BOTH]
            sides = [segment_frames(cell, clip, labeller.fps, seconds) for cell in cells]
            prompt, draw = pairs.table.cell(rows[place], "prompt"), int.from_bytes(key_at(keys, place)[:6], "little")
            shown = [Segment(prompt, *both, draw + i) for i, both in enumerate(zip(*sides, strict=True))]
            answers = labeller.ask(shown)
            reading.read(answers)
            reading.check(PATIENCE)
            yield Row({"answers": answers})

    store.fill(keys, compute, f"Labelling with {labeller.name}")
    codes, kinds = store.values(keys)
    reading, found = _Reading(labeller), [None] * len(pairs.keys)
    for row, code in zip(rows, codes.tolist(), strict=True):
        answers = kinds[code]["answers"]
        found[row] = Answer(reading.read(answers), raw=answers)
    reading.check(0)
    return found


class _Reading:
    """Reads answers, and counts those that answer nothing."""

    def __init__(self, labeller: Labeller):
        self._labeller, self._asked, self._unreadable = labeller, 0, 0
        self._last: Sequence[Any] = ()

    def read(self, answers: Sequence[Sequence[Any]]) -> list[Verdict]:
        """The verdicts; a tie where there is none."""
        verdicts = [self._labeller.verdict(each) for each in answers]
        self._asked += len(verdicts)
        for each, verdict in zip(answers, verdicts, strict=True):
            if verdict is None:
                self._unreadable, self._last = self._unreadable + 1, each
        return [verdict or "tie" for verdict in verdicts]

    def check(self, patience: int) -> None:
        """Complain where more than so many answers, and more than bad luck explains, were none."""
        if self._unreadable > max(patience, MOST_UNREADABLE * self._asked):
            said = " / ".join(repr(str(part)[:100]) for part in self._last)
            raise UserError(
                f"the labeller {self._labeller.name} answered {self._unreadable} of {self._asked} segments with "
                f"something else than first, second or tie. It last said {said}. Use a model that follows "
                "instructions, or for one of transformers decoding=words. Pairs that were answered before are kept."
            )


def _write(splits: dict[str, _Pairs], recipe: dict[str, Any], folder: Path, answer: Ask, *, fresh: bool) -> Labelled:
    """Label and write what is not finished."""
    counts, corrected, written = Counter[Verdict](), 0, 0
    with sole_writer(folder, COMMAND):
        for split, pairs in splits.items():
            target = Target(folder, split, pairs.table, {"made by": COMMAND, **recipe})
            file, finished = answers_file(folder, split), target.is_finished(fresh=fresh)
            made = read_record(target.record) if finished else {}
            if not (finished and file.is_file() and made.get("answers") == hash_of(file.read_bytes())):
                made = _label(target, pairs, file, answer, recipe["seconds"])
            counts.update(made["labels"])
            corrected, written = corrected + made["corrected"], written + made["rows"]
    left_out = sum(len(pairs.keys) for pairs in splits.values()) - written
    return Labelled([file_of(folder, split) for split in splits], written, counts, corrected, left_out)


def _label(target: Target, pairs: _Pairs, file: Path, answer: Ask, seconds: float) -> dict[str, Any]:
    """Label a split, with the corrections that lie in the folder, and write it; returns its record."""
    known = {key_at(pairs.keys, row).hex(): row for row in np.flatnonzero(pairs.keys != b"").tolist()}
    corrections, answers = read_corrections(file, known), answer(pairs)
    for key, correction in corrections.items():
        row = known[key]
        pairs.lasting[row].check(correction.labels, correction.place)
        answers[row] = dataclasses.replace(answers[row] or correction, corrected=correction.labels)
    rows = [row for row, one in enumerate(answers) if one is not None]
    if not rows:
        raise UserError(f"no pair of {pairs.table.path} has labels, so that nothing is written.")
    target.folder.mkdir(parents=True, exist_ok=True)
    write_answers(file, pairs.table, pairs.keys, answers, seconds)
    labels = [answers[row].labels for row in rows]
    changed = sum(sum(a != b for a, b in zip(answers[row].found, answers[row].labels, strict=False)) for row in rows)
    notes = {"answers": hash_of(file.read_bytes()), "labels": Counter(itertools.chain(*labels)), "corrected": changed}
    _write_table(target, rows, labels, notes)
    return read_record(target.record)


def _write_table(
    target: Target, rows: Sequence[int], labels: Sequence[Sequence[Verdict]], notes: dict[str, Any]
) -> None:
    """Write a split: the clip that is better in more segments becomes the chosen one."""
    marks = [[VALUES[label] for label in one] for one in labels]
    whole = np.array([np.sign(sum(one)) for one in marks])
    turned = whole < 0
    kept = turn(target.table.rows.select(rows), turned, target.table.path)
    segments = [[-mark for mark in one] if back else one for one, back in zip(marks, turned, strict=True)]
    columns = {"segments": segments, "preference": np.where(whole == 0, 0.5, 1.0).tolist()}
    target.write(kept, columns, notes | {"exchanged": int(turned.sum())})
