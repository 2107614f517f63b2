"""Dual captions: a pair table with `chosen_prompt` and `rejected_prompt`, made from its images and prompts.

The presets of DCPO (section 4), by what the two captions are:

    preset          chosen_prompt          rejected_prompt
    captioning      of the chosen image    of the rejected image                 `caption_pairs`
    perturbation    the prompt             the prompt, perturbed                 `perturb_pairs`
    hybrid          of the chosen image    of the rejected image, perturbed      `caption_pairs`, then `perturb_pairs`
    hybrid-chosen   of the chosen image    of the chosen image, perturbed        `caption_pairs`, then `perturb_pairs`

A text that comes out empty is left out of the table (null), so that the pair's prompt stands in for it; such rows are
counted and named. When more than `MOST_EMPTY` of a table's rows have one, something is wrong, and nothing is written.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from diffpo.curate.derived import Target, compute_rows, read_tables
from diffpo.data.encode import BOTH, WORKERS, decode_row
from diffpo.disk.ahead import ahead
from diffpo.errors import UserError
from diffpo.media.frames import BrokenImage

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffpo.data.records import Source, Table

log = logging.getLogger(__name__)

Preset = Literal["perturbation", "hybrid", "hybrid-chosen"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
MOST_EMPTY = 0.1
"""Share of empty texts that is still taken for bad luck."""
NAMED = 10
"""Rows that a message names."""


class Captioner(Protocol):
    """What is asked of a captioner: see `diffpo.captioners`."""

    @property
    def batch(self) -> int:
        """Images at a time."""
        ...

    @property
    def provenance(self) -> dict[str, Any]:
        """What decides a caption."""
        ...

    def caption(self, images: Sequence[Image], prompts: Sequence[str], keys: Sequence[int]) -> list[str]:
        """Caption each image; draws depend on its key."""
        ...


class Perturber(Protocol):
    """What is asked of a perturber: see `diffpo.captioners`."""

    @property
    def batch(self) -> int:
        """Texts at a time."""
        ...

    @property
    def provenance(self) -> dict[str, Any]:
        """What decides a result."""
        ...

    def perturb(self, captions: Sequence[str], keys: Sequence[int]) -> list[str]:
        """Rewrite each caption; draws depend on its key."""
        ...


@dataclass(frozen=True)
class Job:
    """A text to be made: what it is made of, and a number of its own."""

    key: int
    row: int
    side: str


def read_preset(name: str) -> Preset:
    """Read the name of a preset of `perturb_pairs`.

    Raises:
        UserError: There is none of that name.
    """
    if name not in PRESETS:
        hint = " For captioning run `diffpo data caption`." if name == "captioning" else ""
        raise UserError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}.{hint}")
    return name


def caption_pairs(source: Source, captioner: Captioner, folder: Path, *, fresh: bool = False) -> list[Path]:
    """Write tables whose captions are a captioner's, for both images of each pair.

    An image that cannot be decoded gets no caption; training drops its row anyway.

    Args:
        source: The pairs; see `derived.read_tables`.
        captioner: See `diffpo.captioners`.
        folder: Where the new tables stand.
        fresh: Whether tables that were made in another way may be replaced.

    Returns:
        A parquet file per split.

    Raises:
        UserError: The place is taken, too many captions are empty, or the captioner cannot work. Finished chunks stay.
    """
    recipe = {"made by": "diffpo data caption", "preset": "captioning", **captioner.provenance}
    targets = [Target(folder, split, table, recipe) for split, table in read_tables(source).items()]
    for target in [target for target in targets if not target.is_finished(fresh=fresh)]:
        texts = partial(_caption, target.table, target.table.column("prompt"), captioner)
        _write(target, _compute(target.table, captioner.provenance, BOTH, texts, "Captioning"), {})
    return [target.path for target in targets]


def perturb_pairs(
    source: Source, perturber: Perturber, folder: Path, preset: Preset, *, fresh: bool = False
) -> list[Path]:
    """Write tables whose rejected captions are perturbed ones; see the presets above.

    Args:
        source: The pairs; for the hybrid presets with captions of their own.
        perturber: See `diffpo.captioners`.
        folder: Where the new tables stand.
        preset: What is perturbed, and what the chosen image's caption is.
        fresh: Whether tables that were made in another way may be replaced.

    Returns:
        A parquet file per split.

    Raises:
        UserError: The place is taken, a table has no captions to perturb, too many come out empty, or the perturber
            cannot work. Finished chunks stay.
    """
    recipe = {"made by": "diffpo data perturb", "preset": preset, **perturber.provenance}
    targets = [Target(folder, split, table, recipe) for split, table in read_tables(source).items()]
    texts = {target.split: _texts_to_perturb(target.table, preset) for target in targets}
    for target in [target for target in targets if not target.is_finished(fresh=fresh)]:
        before = texts[target.split]
        provenance = {"of": "prompt" if preset == "perturbation" else preset, **perturber.provenance}
        work = partial(_perturb, before, perturber)
        columns = _compute(target.table, provenance, ["rejected"], work, "Perturbing")
        unchanged = sum(a == b for a, b in zip(before, columns["rejected_prompt"], strict=True))
        if unchanged:
            log.warning(f"{unchanged} of {len(before)} captions came out as they were: nothing was perturbed there.")
        if preset == "perturbation":
            columns["chosen_prompt"] = before
        _write(target, columns, {"unchanged": unchanged})
    return [target.path for target in targets]


def _caption(table: Table, prompts: Sequence[str], captioner: Captioner, jobs: Sequence[Job]) -> Iterator[str | None]:
    """Caption the images of some jobs, decoded by threads ahead; None where one cannot be decoded."""

    def decode(job: Job) -> Image | None:
        try:
            return decode_row(table.rows[job.row], [job.side])[job.side]
        except BrokenImage as error:
            log.warning(f"{table.path}, row {table.origin[job.row]} gets no caption: {error}")
            return None

    decoded = ahead(decode, jobs, workers=WORKERS, depth=captioner.batch + WORKERS)
    for group in _groups(zip(jobs, decoded, strict=True), captioner.batch):
        good = [(job, image) for job, image in group if image is not None]
        keys = [job.key for job, _ in good]
        images, words = [image for _, image in good], [prompts[job.row] for job, _ in good]
        made = captioner.caption(images, words, keys) if good else []
        found = dict(zip(keys, made, strict=True))
        yield from (found.get(job.key) for job, _ in group)


def _perturb(before: Sequence[str], perturber: Perturber, jobs: Sequence[Job]) -> Iterator[str | None]:
    """Perturb the texts of some jobs; None where there is none."""
    for group in _groups(jobs, perturber.batch):
        good = [job for job in group if before[job.row].strip()]
        keys = [job.key for job in good]
        made = perturber.perturb([before[job.row] for job in good], keys) if good else []
        found = dict(zip(keys, made, strict=True))
        yield from (found.get(job.key) for job in group)


def _texts_to_perturb(table: Table, preset: Preset) -> list[str]:
    """What is perturbed, row by row."""
    if preset == "perturbation":
        return table.column("prompt")
    side = "chosen" if preset == "hybrid-chosen" else "rejected"
    missing = sorted({"chosen_prompt", f"{side}_prompt"} - {*table.rows.column_names})
    if missing:
        raise UserError(
            f"preset {preset} perturbs captions of the images; {table.path} has no {' and no '.join(missing)}. Run "
            f"`diffpo data caption {table.path} ...` first, or choose --preset perturbation."
        )
    return table.captions(side)


def _compute(
    table: Table,
    provenance: dict[str, Any],
    sides: Sequence[str],
    texts: Callable[[Sequence[Job]], Iterator[str | None]],
    title: str,
) -> dict[str, list[str | None]]:
    """Make the captions of some sides: column -> text per row, None where nothing came out."""

    def compute(rows: range) -> Iterator[dict[str, Any]]:
        jobs = [Job(len(BOTH) * row + BOTH.index(side), row, side) for row in rows for side in sides]
        made = texts(jobs)
        for _ in rows:
            yield {f"{side}_prompt": next(made) for side in sides}

    columns = compute_rows(table, provenance, compute, title)
    return {name: [text if text and text.strip() else None for text in found] for name, found in columns.items()}


def _groups(items: Any, size: int) -> Iterator[list[Any]]:
    """Cut into lists of `size`; the last may be shorter."""
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group


def _write(target: Target, columns: dict[str, list[str | None]], notes: dict[str, Any]) -> Path:
    """Count the empty texts, and write the table with what is left.

    Raises:
        UserError: There are too many of them.
    """
    import pyarrow

    table = target.table
    empty = [i for i in range(len(table)) if any(texts[i] is None for texts in columns.values())]
    rows = ", ".join(str(table.origin[i]) for i in empty[:NAMED]) + (", ..." if len(empty) > NAMED else "")
    if len(empty) > MOST_EMPTY * len(table):
        raise UserError(
            f"{len(empty)} of {len(table)} rows of {table.path} got an empty caption (rows {rows}), so no table is "
            "written. Try the model on one of them: it may need another instruction, level, dtype or max_new_tokens."
        )
    if empty:
        log.warning(
            f"{len(empty)} of {len(table)} rows of {table.path} got an empty caption (rows {rows}): their prompt "
            "stands in."
        )
    texts = {name: pyarrow.array(found, pyarrow.string()) for name, found in columns.items()}
    return target.write(table.rows, texts, notes | {"empty": [int(table.origin[i]) for i in empty]})
