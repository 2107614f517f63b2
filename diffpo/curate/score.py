"""Score both images of every pair and label the pairs with it: `diffpo data score`.

Scores are kept in the cache, so another normalisation, temperature or order of the same scores costs nothing.

Both images are judged for the `prompt` of the pair, also where they have captions of their own. The label replaces an
earlier `preference`, that of ties too, if the source keeps them (`data.ties=keep`; otherwise they are not here): what
nobody could decide is decided by the scorer. Equal scores give exactly 0.5, which sources take for a tie.
"""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from diffpo.curate.derived import Asked, ask_of_images, read_tables, writing
from diffpo.curate.labels import Bounds, Labelling, other_side, preferences
from diffpo.curate.write import Target, file_of
from diffpo.data.contents import identify
from diffpo.data.encode import BOTH, describe_broken_image
from diffpo.data.records import Source, Table
from diffpo.errors import UserError
from diffpo.media.frames import BrokenImage
from diffpo.scorers.base import Scorer

log = logging.getLogger(__name__)

FORMAT = 2
"""Raise it when the meaning of kept scores changes."""


@dataclass(frozen=True)
class PairScores:
    """The scores of one table."""

    kept: np.ndarray
    """`[n]` rows of the table, without the broken ones."""
    scores: np.ndarray
    """`[n 2]` raw scores of the kept rows, chosen first."""
    broken: dict[int, str]
    """Why rows were dropped, by their number in the table as it was found."""


@dataclass(frozen=True)
class Scored:
    """What `score_pairs` did."""

    files: list[Path]
    splits: dict[str, PairScores]
    bounds: Bounds

    def __str__(self) -> str:
        pairs = " and ".join(f"{len(found.kept)} {split}" for split, found in self.splits.items())
        lost = [f"{split} {', '.join(map(str, s.broken))}" for split, s in self.splits.items() if s.broken]
        scores = np.concatenate([found.scores for found in self.splits.values()])
        return (
            f"{pairs} pairs; scores of {self.bounds.low:g} and {self.bounds.high:g} count as 0 and 1; the scorer "
            f"prefers the source's rejected image in {(scores[:, 0] < scores[:, 1]).sum()} pairs; "
            f"{(scores[:, 0] == scores[:, 1]).sum()} have equal scores, preference 0.5; "
            + (f"left out with a broken image: row {'; '.join(lost)}" if lost else "no image is broken")
        )


def score_pairs(
    source: Source,
    scorer: Scorer,
    folder: Path,
    labelling: Labelling | None = None,
    *,
    batch: int = 32,
    fresh: bool = False,
) -> Scored:
    """Write the pairs of a source with `chosen_score`, `rejected_score` (raw) and `preference`.

    A broken image drops its row. A validation split of its own is written too, normalised like the training split.

    Args:
        source: The pairs; see `derived.read_tables`.
        scorer: Judges the images, `batch` at a time.
        folder: Where the table is written; see `write.Target`.
        labelling: From scores to labels.
        batch: See `scorer`.
        fresh: Whether a table that was made in another way may be replaced.

    Raises:
        UserError: The source cannot be read, a score is no finite number, the scores do not suit the normalisation, or
            the folder holds something else.
    """
    labelling = labelling or Labelling()
    if batch < 1:
        raise UserError(f"batch is {batch}; it must be at least 1.")
    labelling.check_scorer(scorer.provenance)
    tables = read_tables(source)
    recipe = {"scorer": scorer.provenance, **labelling.recipe, "normalised like": identify(tables["train"])}
    with writing("diffpo data score", tables, recipe, folder, fresh=fresh) as targets:
        found = {split: score_rows(table, scorer, batch) for split, table in tables.items()}
        bounds = labelling.find_bounds(found["train"].scores)
        for target in targets:
            _write(target, found[target.split], bounds, labelling)
    return Scored([file_of(folder, split) for split in tables], found, bounds)


def score_rows(table: Table, scorer: Scorer, batch: int) -> PairScores:
    """Score a table; what was scored before is read from the cache."""

    def ask(asked: list[Asked]) -> list[float]:
        scores = scorer.judge([one.media for one in asked], [one.prompt for one in asked]).double().tolist()
        wrong = [
            f"row {table.origin[one.row]}, {one.side}: {score}"
            for one, score in zip(asked, scores, strict=True)
            if not math.isfinite(score)
        ]
        if wrong:
            raise UserError(
                f"{scorer.name} gives {len(wrong)} images of {table.path} scores that are no finite numbers "
                f"({'; '.join(wrong[:8])}). Score in float32 if it was not, or remove these rows."
            )
        return scores

    recipe, title = {"format": FORMAT, "scorer": scorer.provenance}, f"Scoring with {scorer.name}"
    found = ask_of_images("scores", "score", recipe, table, BOTH, ask, batch, title)
    kept, dropped = [], {}
    for row, scores in enumerate(zip(*found.values(), strict=True)):
        broken = next((i for i, score in enumerate(scores) if isinstance(score, BrokenImage)), None)
        if broken is None:
            kept.append(row)
            continue
        reason = describe_broken_image(BOTH[broken], table.cell(row, BOTH[broken]), scores[broken])
        dropped[int(table.origin[row])] = reason
        log.warning(f"{table.path}: row {table.origin[row]} is dropped: {reason}")
    if not kept:
        raise UserError(f"Every pair of {table.path} has a broken image: {next(iter(dropped.values()))}.")
    return PairScores(np.array(kept), np.array([[found[side][row] for side in BOTH] for row in kept]), dropped)


def _write(target: Target, found: PairScores, bounds: Bounds, labelling: Labelling) -> None:
    turned = (found.scores[:, 0] < found.scores[:, 1]) & (labelling.order == "scorer")
    scores = np.where(turned[:, None], found.scores[:, ::-1], found.scores)
    rows = turn(target.table.rows.select(found.kept), turned, target.table.path)
    columns: dict[str, list[Any]] = {"chosen_score": scores[:, 0].tolist(), "rejected_score": scores[:, 1].tolist()}
    columns["preference"] = preferences(scores, bounds, labelling.temperature).tolist()
    if "segments" in rows.column_names:
        marks = rows.select_columns(["segments"])[:]["segments"]
        columns["segments"] = [[-m for m in row] if turn else row for row, turn in zip(marks, turned, strict=True)]
    notes = {"low": bounds.low, "high": bounds.high, "exchanged": int(turned.sum())}
    target.write(rows, columns, notes | {"broken": {str(row): reason for row, reason in found.broken.items()}})


def turn(rows: Dataset, turned: np.ndarray, path: str) -> Dataset:
    """Exchange chosen and rejected, and all columns that belong to a side, where `turned` `[n]` says so.

    The table is laid below itself with the sides' names exchanged, and an index takes each row from one half: no image
    is copied.
    """
    if not turned.any():
        return rows
    exchanged = rows.rename_columns({name: other_side(name) for name in rows.column_names})
    try:
        both = concatenate_datasets([rows, exchanged])
    except ValueError as error:
        raise UserError(
            f"{path} keeps chosen and rejected in different forms, so they cannot be exchanged ({error}). Bring both "
            "into one form, or use --order human."
        ) from error
    return both.select(np.arange(len(rows)) + len(rows) * turned)
