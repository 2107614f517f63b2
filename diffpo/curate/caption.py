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

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow

from diffpo.captioners.base import Captioner, Perturber
from diffpo.curate.derived import Asked, ask_of_images, compute_values, read_tables, writing
from diffpo.curate.write import Target, file_of
from diffpo.data.advice import how_to_get
from diffpo.data.encode import BOTH
from diffpo.data.records import Source, Table
from diffpo.disk.ahead import groups
from diffpo.disk.rows import as_keys, digest, key_at
from diffpo.errors import UserError
from diffpo.media.frames import BrokenImage

log = logging.getLogger(__name__)

Preset = Literal["perturbation", "hybrid", "hybrid-chosen"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
MOST_EMPTY = 0.1
"""The share of empty texts that is still taken for bad luck."""
NAMED = 10
"""A message names so many rows."""


def read_preset(name: str) -> Preset:
    """Read the name of a preset of `perturb_pairs`; another one is a `UserError`."""
    if name not in PRESETS:
        hint = " For captioning run `diffpo data caption`." if name == "captioning" else ""
        raise UserError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}.{hint}")
    return name


def caption_pairs(source: Source, captioner: Captioner, folder: Path, *, fresh: bool = False) -> list[Path]:
    """Write a file per split whose captions are a captioner's, for both images of each pair.

    An image that cannot be decoded gets no caption; training drops its row anyway. With `fresh`, files in `folder` that
    were made in another way are replaced.

    Raises:
        UserError: The place is taken, too many captions are empty, or the captioner cannot work. Finished chunks stay.
    """
    tables, recipe = read_tables(source), {"preset": "captioning", **captioner.provenance}
    with writing("diffpo data caption", tables, recipe, folder, fresh=fresh) as targets:
        for target in targets:
            _write(target, {f"{side}_prompt": _caption(target.table, side, captioner) for side in BOTH}, {})
    return [file_of(folder, split) for split in tables]


def perturb_pairs(
    source: Source, perturber: Perturber, folder: Path, preset: Preset, *, fresh: bool = False
) -> list[Path]:
    """Write a file per split whose rejected captions are perturbed ones; see the presets above.

    For the hybrid presets the pairs have captions of their own. `fresh` is that of `caption_pairs`.

    Raises:
        UserError: The place is taken, a table has no captions to perturb, too many come out empty, or the perturber
            cannot work. Finished chunks stay.
    """
    tables, recipe = read_tables(source), {"preset": preset, **perturber.provenance}
    texts = {split: _texts_to_perturb(table, preset) for split, table in tables.items()}
    with writing("diffpo data perturb", tables, recipe, folder, fresh=fresh) as targets:
        for target in targets:
            before = texts[target.split]
            columns = {"rejected_prompt": _perturb(before, perturber)}
            unchanged = sum(a == b for a, b in zip(before, columns["rejected_prompt"], strict=True))
            if unchanged:
                log.warning(
                    f"{unchanged} of {len(before)} captions came out as they were: nothing was perturbed there."
                )
            if preset == "perturbation":
                columns["chosen_prompt"] = before
            _write(target, columns, {"unchanged": unchanged})
    return [file_of(folder, split) for split in tables]


def _caption(table: Table, side: str, captioner: Captioner) -> list[str | None]:
    """Caption the images of one side; None where one cannot be decoded, or nothing came out."""
    moving = 0

    def ask(asked: list[Asked]) -> list[str]:
        nonlocal moving
        moving += sum(len(one.media.frames) > 1 for one in asked)
        draws = [_draw(one.key) for one in asked]
        return captioner.describe([one.media for one in asked], [one.prompt for one in asked], draws)

    recipe, batch = captioner.provenance, captioner.batch
    answers = ask_of_images("captions", "text", recipe, table, (side,), ask, batch, f"Captioning {side}")[side]
    if moving and captioner.frames == 1:
        log.warning(
            f"{table.path}: {moving} clips were captioned by their first frame alone. A model that takes several "
            "images can be shown more of them: --captioner transformers,frames=8,..."
        )
    for row, answer in enumerate(answers):
        if isinstance(answer, BrokenImage):
            log.warning(f"{table.path}, row {table.origin[row]} gets no {side} caption: {answer}")
    return [answer if isinstance(answer, str) and answer.strip() else None for answer in answers]


def _perturb(before: Sequence[str], perturber: Perturber) -> list[str | None]:
    """Perturb texts; None where there is none, or nothing came out."""
    times: Counter[str] = Counter()
    keys = as_keys([b""] * len(before))
    for row, text in enumerate(before):
        if text.strip():  # a caption that stands in several rows is perturbed anew in each of them
            keys[row] = digest(text, str(times[text]))
            times[text] += 1

    def compute(rows: Sequence[int]) -> Iterator[dict[str, Any]]:
        for group in groups(rows, perturber.batch):
            draws = [_draw(key_at(keys, row)) for row in group]
            yield from ({"text": text} for text in perturber.perturb([before[row] for row in group], draws))

    values = compute_values("captions", perturber.provenance, keys, compute, "Perturbing")
    return [value["text"] if value and value["text"].strip() else None for value in values]


def _draw(key: bytes) -> int:
    """Make the number that a caption's random draws depend on: what it is made of decides, not where that stands."""
    return int.from_bytes(key[:6], "little")


def _texts_to_perturb(table: Table, preset: Preset) -> list[str]:
    """Choose what is perturbed, row by row."""
    if preset == "perturbation":
        return table.column("prompt")
    side = "chosen" if preset == "hybrid-chosen" else "rejected"
    missing = sorted({"chosen_prompt", f"{side}_prompt"} - {*table.rows.column_names})
    if missing:
        raise UserError(
            f"preset {preset} perturbs captions of the images; {table.path} has no {' and no '.join(missing)}. "
            f"{how_to_get(missing, missing, table.path)} first, or choose --preset perturbation."
        )
    return table.captions(side).to_pylist()


def _write(target: Target, columns: dict[str, list[str | None]], notes: dict[str, Any]) -> None:
    """Count the empty texts, and write the table with what is left."""
    table = target.table
    empty = [i for i in range(len(table)) if any(texts[i] is None for texts in columns.values())]
    rows = ", ".join(str(table.origin[i]) for i in empty[:NAMED]) + (", ..." if len(empty) > NAMED else "")
    said = f"{len(empty)} of {len(table)} rows of {table.path} got an empty caption (rows {rows})"
    if len(empty) > MOST_EMPTY * len(table):
        raise UserError(
            f"{said}, so no table is written. Try the model on one of them: it may need another instruction, level, "
            "dtype or max_new_tokens."
        )
    if empty:
        log.warning(f"{said}: their prompt stands in.")
    texts = {name: pyarrow.array(found, pyarrow.string()) for name, found in columns.items()}
    target.write(table.rows, texts, notes | {"empty": [int(table.origin[i]) for i in empty]})
