"""Score both images of every pair and label the pairs with it: `diffpo data score`.

Scores are kept in the cache, so another normalisation, temperature or order of the same scores costs nothing.

Both images are judged for the `prompt` of the pair, also where they have captions of their own. The label replaces an
earlier `preference`, that of ties too, if the source keeps them (`data.ties=keep`; otherwise they are not here): what
nobody could decide is decided by the scorer. Equal scores give exactly 0.5, which sources take for a tie.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from diffpo.curate.derived import Target, compute_rows, read_tables
from diffpo.curate.labels import Bounds, Labelling, other_side, preferences
from diffpo.data.encode import BOTH, WORKERS, decode_row
from diffpo.disk.ahead import ahead
from diffpo.errors import UserError
from diffpo.media.frames import BrokenImage

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image
    from torch import Tensor

    from diffpo.data.records import Source, Table

log = logging.getLogger(__name__)

FORMAT = 1
"""Raise it when the meaning of kept scores changes."""


class Scorer(Protocol):
    """What is asked of a scorer."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def provenance(self) -> dict[str, Any]:
        """What decides a score, as plain JSON values."""
        ...

    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        """Return `[n]`, one number per image and its prompt; higher is better."""
        ...


@dataclass(frozen=True)
class PairScores:
    """The scores of one table."""

    kept: np.ndarray
    """`[n]` rows of the table, without the broken ones."""
    scores: np.ndarray
    """`[n 2]` raw scores of the kept rows, chosen first."""
    broken: dict[int, str]
    """Dropped rows, by their number in the table as it was found, and why."""


@dataclass(frozen=True)
class Scored:
    """What `score_pairs` did."""

    files: list[Path]
    pairs: dict[str, int]
    """By split."""
    broken: dict[str, dict[int, str]]
    """By split; see `PairScores.broken`."""
    disagree: int
    """Pairs whose rejected image has the higher score in the order of the source."""
    equal: int
    """Pairs with two equal scores."""
    bounds: Bounds

    def __str__(self) -> str:
        """Say it in words."""
        pairs = " and ".join(f"{n} {split}" for split, n in self.pairs.items())
        lost = [f"{split} {', '.join(map(str, rows))}" for split, rows in self.broken.items() if rows]
        return (
            f"{pairs} pairs; scores of {self.bounds.low:g} and {self.bounds.high:g} count as 0 and 1; the scorer "
            f"prefers the source's rejected image in {self.disagree} pairs; {self.equal} have equal scores, preference "
            "0.5; " + (f"left out with a broken image: row {'; '.join(lost)}" if lost else "no image is broken")
        )


def score_pairs(
    source: Source,
    scorer: Scorer,
    folder: str | Path,
    labelling: Labelling | None = None,
    *,
    batch: int = 32,
    fresh: bool = False,
) -> Scored:
    """Write the pairs of a source with `chosen_score`, `rejected_score` (raw) and `preference`.

    Its validation split, if it has one of its own, is written too, normalised like the training split; a
    `validation_fraction` is left to be divided off the written table, where it chooses the same prompts.

    Args:
        source: The pairs; a broken image drops its row.
        scorer: Judges the images.
        folder: Where the table is written; see `derived.Target`.
        labelling: From scores to labels.
        batch: Images that the scorer is given at a time.
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
    recipe = {"made by": "diffpo data score", "scorer": scorer.provenance} | labelling.recipe
    recipe |= {"normalised like": tables["train"].fingerprint}
    targets = {split: Target(Path(folder), split, table, recipe) for split, table in tables.items()}
    finished = {split: target.is_finished(fresh=fresh) for split, target in targets.items()}
    found = {split: score_rows(table, scorer, batch) for split, table in tables.items()}
    bounds = labelling.find_bounds(found["train"].scores)
    for split, target in targets.items():
        if not finished[split]:
            _write(target, found[split], bounds, labelling)
    scores = np.concatenate([part.scores for part in found.values()])
    return Scored(
        files=[target.path for target in targets.values()],
        pairs={split: len(part.kept) for split, part in found.items()},
        broken={split: part.broken for split, part in found.items()},
        disagree=int((scores[:, 0] < scores[:, 1]).sum()),
        equal=int((scores[:, 0] == scores[:, 1]).sum()),
        bounds=bounds,
    )


def score_rows(table: Table, scorer: Scorer, batch: int) -> PairScores:
    """Score a table; what was scored before is read from the cache.

    Raises:
        UserError: A score is no finite number, or no row is left.
    """
    provenance = {"what": "scores of both images for the prompt", "format": FORMAT, "scorer": scorer.provenance}
    captions = table.column("prompt")
    columns = compute_rows(
        table, provenance, lambda rows: _score(table, rows, captions, scorer, batch), f"Scoring with {scorer.name}"
    )
    broken = {int(table.origin[i]): reason for i, reason in enumerate(columns["broken"]) if reason is not None}
    for row, reason in broken.items():
        log.warning(f"{table.path}: row {row} is dropped: {reason}")
    kept = [i for i, reason in enumerate(columns["broken"]) if reason is None]
    if not kept:
        raise UserError(f"Every pair of {table.path} has a broken image: {next(iter(broken.values()))}.")
    scores = np.column_stack([np.array(columns[side], np.float64)[kept] for side in BOTH])
    return PairScores(np.array(kept), scores, broken)


def _score(table: Table, rows: range, captions: list[str], scorer: Scorer, batch: int) -> Iterator[dict[str, Any]]:
    """Yield both scores of each row, or why it is broken; images are decoded by threads some rows ahead."""
    pairs = max(1, batch // 2)
    decoded = ahead(lambda row: (row, _decode(table, row)), rows, workers=WORKERS, depth=pairs + WORKERS)
    while group := list(itertools.islice(decoded, pairs)):
        whole = {row: images for row, images in group if isinstance(images, list)}
        images = [image for pair in whole.values() for image in pair]
        prompts = [captions[row] for row in whole for _ in BOTH]
        scores = scorer.score(images, prompts).double().reshape(-1, 2).tolist() if whole else []
        by_row = dict(zip(whole, scores, strict=True))
        _check_finite(by_row, table, scorer.name)
        for row, found in group:
            reason = found if isinstance(found, str) else None
            yield dict(zip(BOTH, by_row.get(row, (None, None)), strict=True)) | {"broken": reason}


def _decode(table: Table, row: int) -> list[Image] | str:
    try:
        return list(decode_row(table.rows[row], BOTH).values())
    except BrokenImage as error:
        return str(error)


def _check_finite(scores: dict[int, list[float]], table: Table, scorer: str) -> None:
    wrong = [row for row, pair in scores.items() if not all(map(math.isfinite, pair))]
    if wrong:
        some = "; ".join(f"row {table.origin[row]}: {scores[row][0]}, {scores[row][1]}" for row in wrong[:8])
        raise UserError(
            f"{scorer} gives {len(wrong)} pairs of {table.path} scores that are no finite numbers (chosen, rejected; "
            f"{some}). Score in float32 if it was not, or remove these rows."
        )


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

    Raises:
        UserError: Both sides are not kept in the same form.
    """
    from datasets import concatenate_datasets

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
