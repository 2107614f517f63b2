"""Score both images of every pair and label the pairs with it: `diffpo data score`.

Scores are kept in the cache, so another normalisation, temperature or order of the same scores costs nothing.

Both images are judged for the `prompt` of the pair, also where they have captions of their own. The label replaces an
earlier `preference`, that of ties too, if the source keeps them (`data.ties=keep`; otherwise they are not here): what
nobody could decide is decided by the scorer. Equal scores give exactly 0.5, which sources take for a tie.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from diffpo.curate.derived import Target, compute_values, key_images, read_tables, writing
from diffpo.curate.labels import Bounds, Labelling, other_side, preferences
from diffpo.data.contents import identify, read_contents
from diffpo.data.encode import BOTH, describe_broken_image
from diffpo.disk.ahead import WORKERS, ahead, groups
from diffpo.errors import UserError
from diffpo.media.frames import BrokenImage, decode

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image
    from torch import Tensor

    from diffpo.data.records import Source, Table

log = logging.getLogger(__name__)

FORMAT = 2
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
    recipe |= {"normalised like": identify(tables["train"])}
    targets = [Target(Path(folder), split, table, recipe) for split, table in tables.items()]
    with writing("diffpo data score", targets, fresh=fresh) as unfinished:
        found = {split: score_rows(table, scorer, batch) for split, table in tables.items()}
        bounds = labelling.find_bounds(found["train"].scores)
        for target in unfinished:
            _write(target, found[target.split], bounds, labelling)
    scores = np.concatenate([part.scores for part in found.values()])
    return Scored(
        files=[target.path for target in targets],
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
    prompts, contents = table.column("prompt"), {side: read_contents(table, side) for side in BOTH}
    keys = np.stack([key_images(contents[side].keys, prompts) for side in BOTH], axis=1).reshape(-1)
    recipe = {"format": FORMAT, "scorer": scorer.provenance}
    values = compute_values(
        "scores",
        recipe,
        keys,
        lambda places: _score(table, places, prompts, scorer, batch),
        f"Scoring with {scorer.name}",
    )
    scores, broken = np.full((len(table), len(BOTH)), np.nan), {}
    for place, value in enumerate(values):
        row, number = divmod(place, len(BOTH))
        if value is not None and "score" in value:
            scores[row, number] = value["score"]
        elif row not in broken:
            side = BOTH[number]
            reason = contents[side].unreadable[row] if value is None else value["broken"]
            broken[row] = describe_broken_image(side, table.cell(row, side), reason)
    dropped = {int(table.origin[row]): reason for row, reason in broken.items()}
    for row, reason in dropped.items():
        log.warning(f"{table.path}: row {row} is dropped: {reason}")
    kept = np.setdiff1d(np.arange(len(table)), list(broken))
    if not len(kept):
        raise UserError(f"Every pair of {table.path} has a broken image: {next(iter(dropped.values()))}.")
    return PairScores(kept, scores[kept], dropped)


def _score(
    table: Table, places: Sequence[int], prompts: list[str], scorer: Scorer, batch: int
) -> Iterator[dict[str, Any]]:
    """Yield the score of each image, or why it is broken; images are decoded by threads some ahead."""
    decoded = ahead(lambda place: (place, _decode(table, place)), places, workers=WORKERS, depth=batch + WORKERS)
    for group in groups(decoded, batch):
        images = {place: image for place, image in group if not isinstance(image, BrokenImage)}
        asked = [prompts[place // len(BOTH)] for place in images]
        scores = dict(
            zip(images, scorer.score(list(images.values()), asked).double().tolist() if images else [], strict=True)
        )
        _check_finite(scores, table, scorer.name)
        for place, image in group:
            yield {"broken": str(image)} if isinstance(image, BrokenImage) else {"score": scores[place]}


def _decode(table: Table, place: int) -> Image | BrokenImage:
    row, number = divmod(place, len(BOTH))
    try:
        return decode(table.cell(row, BOTH[number]))
    except BrokenImage as error:
        return error


def _check_finite(scores: dict[int, float], table: Table, scorer: str) -> None:
    wrong = [place for place, score in scores.items() if not math.isfinite(score)]
    if wrong:
        named = [(table.origin[place // len(BOTH)], BOTH[place % len(BOTH)], scores[place]) for place in wrong[:8]]
        some = "; ".join(f"row {row}, {side}: {score}" for row, side, score in named)
        raise UserError(
            f"{scorer} gives {len(wrong)} images of {table.path} scores that are no finite numbers ({some}). Score in "
            "float32 if it was not, or remove these rows."
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
