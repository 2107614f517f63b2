"""Read a source's splits, and keep prompts from standing in two of them."""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from diffpo.data.advice import how_to_get
from diffpo.data.checks import check_captions, check_users
from diffpo.data.read import TEXTS, read_table
from diffpo.data.records import OPTIONAL, REQUIRED, Source, Splits, Table
from diffpo.data.sources import SOURCES
from diffpo.disk.rows import as_keys, cache_home, digest
from diffpo.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

SIDED = {"chosen": "chosen_prompt", "rejected": "rejected_prompt"}
SINGLE = {"image", "completion", "label", "desirable", "file_name"}
"""Columns of tables that hold one judged image per row."""
SYNONYMS = {
    "prompt": ("prompt", "caption", "text", "instruction"),
    "chosen": ("chosen", "winner", "win", "preferred", "better", "chosen_image", "image_w", "image_chosen", "good"),
    "rejected": ("rejected", "loser", "lose", "other", "worse", "rejected_image", "image_l", "image_rejected", "bad"),
}
"""What people call the columns."""


def load_table(source: Source, path: str, split: str) -> Table:
    """Read one table in standard columns; one that lacks columns, or has no usable row, is refused."""
    theirs = {name: name for name in source.needed} | source.columns
    images, texts = [theirs[name] for name in source.needed[:2]], [theirs[name] for name in theirs if name in TEXTS]
    raw = read_table(path, split, images, texts, cache_home(source.cache_dir))
    rows = _rename(source, raw.rows, path)
    _check_columns(source, rows.column_names, path)
    layout = source.adapt(rows, path)
    index = layout.index[: source.limit]
    if not len(index):
        raise UserError(
            f"No row of {path} (split {split}) can be used: {layout.counts}. data.ties=keep would keep the ties."
        )
    log.info(f"{path}, split {split}: {layout.counts}; {len(index)} pairs are used.")
    keep = [name for name in (*REQUIRED, *OPTIONAL) if name in layout.rows.column_names]
    fingerprint = digest(raw.fingerprint, type(source).__name__, repr(sorted(source.columns.items()))).hex()
    places = np.arange(len(layout.rows))
    table = Table(layout.rows.select_columns(keep), places, fingerprint, layout.counts, path).take(index)
    _note_missing_captions(table)
    if "user_id" in keep:
        check_users(table.rows, "user_id", path)
    return table


def _rename(source: Source, rows: Dataset, path: str) -> Dataset:
    """Give the columns that the source names their standard names, in the place of others of those names."""
    missing = [theirs for theirs in source.columns.values() if theirs not in rows.column_names]
    if missing:
        raise UserError(
            f"data.columns names {', '.join(missing)}, but {path} has the columns {', '.join(rows.column_names)}."
        )
    renamed = {theirs: ours for ours, theirs in source.columns.items() if theirs != ours}
    replaced = [ours for ours in renamed.values() if ours in rows.column_names and ours not in renamed]
    return rows.remove_columns(replaced).rename_columns(renamed)


def _note_missing_captions(table: Table) -> None:
    for side, own in SIDED.items():
        if own in table.rows.column_names:
            check_captions(table.rows, own, table.path)
            missing = table.captions_missing(side)
            if missing:
                log.warning(
                    f"{table.path}: {missing} of {len(table)} {side} captions are missing or empty: the prompt stands "
                    "in."
                )


def load_splits(source: Source) -> Splits:
    """Read the pairs to learn from and those held out.

    Raises:
        UserError: A table cannot be read; or a prompt stands in both splits; or a split would be empty.
    """
    splits = read_splits(source)
    shared = [] if splits.validation is None else shared_prompts(splits.train, splits.validation)
    if shared:
        examples = ", ".join(f"{prompt[:60]!r}" for prompt in shared[:3])
        raise UserError(
            f"{len(shared)} prompts of {splits.validation.path} stand in the training split too, for example "
            f"{examples}. What is held out must be new to the model: remove those rows, or leave out "
            "validation_path and validation_split and set data.validation_fraction=0.05."
        )
    return splits


def read_splits(source: Source) -> Splits:
    """Do what `load_splits` does, but let a prompt stand in both splits: for looking at a table."""
    train = load_table(source, source.path, source.split)
    if source.validation_fraction:
        return _divide(train, source.validation_fraction)
    if not (source.validation_path or source.validation_split):
        return Splits(train, None)
    path, split = source.validation_path or source.path, source.validation_split or "train"
    return Splits(train, load_table(source, path, split))


def _divide(table: Table, fraction: float) -> Splits:
    prompts = (normalise(prompt) for part in table.in_parts(table.arrow, "prompt") for prompt in part)
    held_out = np.array([_unit_hash(prompt) < fraction for prompt in prompts])
    if held_out.all() or not held_out.any():
        prompts = len({normalise(prompt) for prompt in table.column("prompt")})
        side = "training" if held_out.all() else "validation"
        raise UserError(
            f"validation_fraction={fraction} leaves no {side} pairs: {table.path} has {prompts} different prompts. "
            "Change the fraction."
        )
    return Splits(table.take(np.flatnonzero(~held_out)), table.take(np.flatnonzero(held_out)))


def normalise(prompt: str) -> str:
    """Reduce a prompt to what makes it the same prompt: NFKC, case folded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", prompt).casefold().split())


def shared_prompts(a: Table, b: Table) -> list[str]:
    """Prompts, normalised, that stand in both tables."""

    def keys(table: Table) -> np.ndarray:
        parts = table.in_parts(table.arrow, "prompt")
        return np.concatenate([as_keys([digest(normalise(prompt)) for prompt in part]) for part in parts])

    _, rows, _ = np.intersect1d(keys(a), keys(b), return_indices=True)
    return sorted(normalise(prompt) for prompt in a.arrow("prompt", rows.tolist()).to_pylist()) if len(rows) else []


def check_requires(requires: frozenset[str], table: Table, method: str) -> None:
    """Check that a table offers the columns that a method needs.

    Raises:
        UserError: It does not; the message says how to get them.
    """
    missing = sorted(requires - set(table.rows.column_names))
    if not missing:
        blank = [own for side, own in SIDED.items() if own in requires and table.captions_missing(side) == len(table)]
        if blank:
            raise UserError(
                f"{method} needs captions; in {table.path} every `{blank[0]}` is missing or empty. "
                f"{how_to_get(blank, requires, table.path)}, or choose method=dpo."
            )
        return
    named = ", ".join(f"`{name}`" for name in missing)
    needs = f"a {named} column" if len(missing) == 1 else f"the columns {named}"
    raise UserError(
        f"{method} needs {needs}; this table has {', '.join(table.rows.column_names)}. "
        f"{how_to_get(missing, requires, table.path)}, or choose method=dpo."
    )


def fitting_layouts(found: list[str]) -> list[str]:
    """Names of the layouts whose columns a table has."""
    return [name for name, source in SOURCES.items() if set(source.needed) <= set(found)]


def say_layouts() -> str:
    """Say which columns every layout needs."""
    return "; ".join(f"{name} needs {', '.join(source.needed)}" for name, source in SOURCES.items())


def advise_columns(found: Sequence[str]) -> str:
    """Say how to tell what the columns of a table with other names are."""
    guessed = {
        ours: next((name for name in found if name.lower() in names), "COLUMN") for ours, names in SYNONYMS.items()
    }
    pairs = ", ".join(f"{ours}: {name}" for ours, name in guessed.items() if ours != name)
    option = pairs.replace(": ", "=").replace(", ", ",")
    return (
        f"Say which column is which: data.columns='{{{pairs}}}' in a config or for `diffpo train`, --columns {option} "
        "for `diffpo data`."
    )


def _check_columns(source: Source, found: list[str], path: str) -> None:
    missing = [name for name in source.needed if name not in found]
    if not missing:
        return
    fitting = fitting_layouts(found)
    advice = f"Choose data.name={fitting[0]}." if fitting else f"{advise_columns(found)} (Layouts: {say_layouts()}.)"
    if not fitting and set(found) & SINGLE and not {"chosen", "rejected"} & set(found):
        advice = (
            "This looks like a table of single images with a label each. Every method learns from pairs, kto too: "
            "a row holds a desirable (chosen) and an undesirable (rejected) image of one prompt. Put such images side "
            "by side, or make pairs with `diffpo generate` and `diffpo data build`."
        )
    raise UserError(f"{path} has no column {', '.join(missing)}; it has {', '.join(found)}. {advice}")


def check_order(table: Table, method: str) -> None:
    """Check that every row says "chosen is better", for a method that does not read `preference`.

    Raises:
        UserError: Rows say the opposite.
    """
    if "preference" not in table.rows.column_names:
        return
    preference = np.asarray(table.column("preference"), float)
    opposite, ties = int((preference < 0.5).sum()), int((preference == 0.5).sum())
    if opposite:
        raise UserError(
            f"{opposite} rows of {table.path} have a preference below 0.5: their label disagrees with their order, and "
            f"{method} does not read the column. Exchange chosen and rejected there, leave those rows out, or set "
            "method.sft_side=chosen, if chosen images are to be learned whatever labels say."
        )
    if ties:
        log.warning(
            f"{ties} ties of {table.path} are kept, and {method} learns them like any pair, in the order of the table: "
            "data.ties=drop leaves them out."
        )


def _unit_hash(text: str) -> float:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
