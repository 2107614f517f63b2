"""Look at a pair table before anyone trains on it: what `diffpo data inspect` prints."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group
from rich.table import Table as Grid
from rich.text import Text

from diffpo.data.checks import user_name
from diffpo.data.contents import read_contents
from diffpo.data.encode import BOTH
from diffpo.data.lengths import describe_broken_image
from diffpo.data.read import read_table
from diffpo.data.records import Counts, Source, Table
from diffpo.data.sources import SOURCES
from diffpo.data.splits import (
    advise_columns,
    fitting_layouts,
    normalise,
    read_splits,
    say_layouts,
    shared_prompts,
)
from diffpo.disk.ahead import WORKERS, ahead
from diffpo.disk.progress import track
from diffpo.errors import UserError
from diffpo.media.frames import BrokenImage, Look, look

SAME_ASPECT = 1.05
"""Images whose aspects differ by a factor below this have the same one."""
LISTED = 10
"""The rendering lists so many sizes and prompts."""


@dataclass(frozen=True)
class SplitReport:
    """What one split holds."""

    path: str
    counts: Counts
    pairs: int
    """Usable rows, broken ones included."""
    columns: tuple[str, ...]
    broken: dict[int, str]
    """Rows with an image that cannot be used, by their number in the table as it was found."""
    sizes: Counter[tuple[int, int]]
    """How many images have a width and height."""
    mismatched: int
    """Pairs whose two images have different aspects."""
    lengths: Counter[tuple[int, float | None]]
    """How many clips have so many frames at so many per second; None: the file does not say, or is a picture."""
    unlike: dict[int, str]
    """Rows whose two clips differ in length or rate."""
    blank: int
    """Pairs whose prompt is empty."""
    identical: int
    """Pairs of one image and itself: nothing can be learned from them."""
    contradicting: int
    """Pairs that stand in the table a second time with the opposite label."""
    prompts: int
    """Different prompts, after normalisation."""
    users: int | None
    """Different users; None if the table does not say who chose."""

    @property
    def summary(self) -> dict[str, Any]:
        """What is said of the split, line by line."""
        clips = any(frames > 1 for frames, _ in self.lengths)
        of_clips = {"with two lengths or rates": len(self.unlike), "clips": _describe_lengths(self.lengths)}
        return {
            "rows": self.counts.rows,
            "ties": self.counts.ties,
            "without a label": self.counts.unlabelled,
            "without a prompt": self.counts.promptless,
            "pairs to use": self.pairs - len(self.broken),
            "with a broken image": len(self.broken),
            "with an empty prompt": self.blank,
            "of an image and itself": self.identical,
            "with the opposite label, too": self.contradicting,
            "with two aspects": self.mismatched,
            "different prompts": self.prompts,
            "users": "not said" if self.users is None else self.users,
            "columns": ", ".join(self.columns),
            "image sizes": _describe_sizes(self.sizes),
            **(of_clips if clips else {}),
        }


@dataclass(frozen=True)
class Report:
    """What a source holds."""

    train: SplitReport
    validation: SplitReport | None
    shared: list[str] = field(default_factory=list)
    """Prompts, normalised, that stand in both splits; training refuses them."""

    def missing(self, methods: Mapping[str, frozenset[str]]) -> dict[str, list[str]]:
        """Say which columns each method still needs, given those that it requires."""
        return {name: sorted(requires - set(self.train.columns)) for name, requires in methods.items()}


def guess_source(path: str, split: str = "train", columns: Mapping[str, str] | None = None) -> Source:
    """Choose the layout that fits a table's columns, which the table may call otherwise: see `Source.columns`.

    Raises:
        UserError: The table cannot be read, or fits no layout; the message says what `diffpo data import` would do.
    """
    renamed = {theirs: ours for ours, theirs in (columns or {}).items()}
    try:
        found = read_table(path, split, ()).rows.column_names
    except UserError as error:
        raise UserError(f"{error}{_import_advice(path)}") from error
    fitting = fitting_layouts([renamed.get(name, name) for name in found])
    if not fitting:
        message = f"{path} has the columns {', '.join(found)}, which fit no layout: {say_layouts()}."
        raise UserError(f"{message} {_import_advice(path) or advise_columns(found)}")
    return SOURCES[fitting[0]](path=path, split=split, columns=dict(columns or {}))


def _import_advice(path: str) -> str:
    """Say what `diffpo data import` would do; empty if it would do nothing."""
    from diffpo.curate.imports.run import fitting_imports

    return "".join(
        f"\nIt looks like {name}: run `diffpo data import {path} --layout {name} --out FOLDER` and inspect FOLDER."
        for name in fitting_imports(path)
    )


def inspect(source: Source) -> Report:
    """Read a source's splits and decode every image of theirs.

    Raises:
        UserError: A table cannot be read.
    """
    splits = read_splits(source)
    train, held_out = _inspect(splits.train), splits.validation
    if held_out is None:
        return Report(train, None)
    return Report(train, _inspect(held_out), shared_prompts(splits.train, held_out))


def _inspect(table: Table) -> SplitReport:
    broken, sizes, mismatched, lengths, unlike = {}, Counter(), 0, Counter(), {}
    found = ahead(lambda i: _look(table, i), range(len(table)), workers=WORKERS, depth=4 * WORKERS)
    for index, pair in enumerate(track(found, "Looking at images", len(table))):
        if isinstance(pair, BrokenImage):
            broken[int(table.origin[index])] = str(pair)
            continue
        chosen, rejected = pair
        sizes.update((side.width, side.height) for side in pair)
        lengths.update((side.frames, side.fps) for side in pair)
        aspects = chosen.width * rejected.height / (chosen.height * rejected.width)
        mismatched += abs(math.log(aspects)) > math.log(SAME_ASPECT)
        if (chosen.frames, chosen.fps) != (rejected.frames, rejected.fps):
            unlike[int(table.origin[index])] = f"chosen has {_length(chosen)}, rejected has {_length(rejected)}"
    columns, prompts = tuple(table.rows.column_names), [normalise(prompt) for prompt in table.column("prompt")]
    pairs = Counter(zip(prompts, *(read_contents(table, side).keys.tolist() for side in BOTH), strict=True))
    return SplitReport(
        path=table.path,
        counts=table.counts,
        pairs=len(table),
        columns=columns,
        broken=broken,
        sizes=sizes,
        mismatched=mismatched,
        lengths=lengths,
        unlike=unlike,
        blank=prompts.count(""),
        identical=sum(n for (_, chosen, rejected), n in pairs.items() if chosen == rejected != b""),
        contradicting=sum(n for (prompt, a, b), n in pairs.items() if a != b and (prompt, b, a) in pairs),
        prompts=len(set(prompts)),
        users=len({*map(user_name, table.column("user_id"))} - {None}) if "user_id" in columns else None,
    )


def _look(table: Table, index: int) -> list[Look] | BrokenImage:
    found, row = [], table.rows[index]
    for side in BOTH:
        try:
            found.append(look(row[side]))
        except BrokenImage as error:
            return BrokenImage(describe_broken_image(side, row[side], error))
    return found


def render(report: Report, methods: Mapping[str, frozenset[str]]) -> Group:
    """Lay a report out for the terminal; `methods` are the columns that each method requires, by its name."""
    splits = {"train": report.train} | ({"validation": report.validation} if report.validation else {})
    summary = Grid("", *splits, title=Text(report.train.path), title_justify="left")
    for label in report.train.summary:
        summary.add_row(label, *(Text(str(split.summary.get(label, ""))) for split in splits.values()))
    needs = Grid("method", "columns that it still needs", title="Methods", title_justify="left")
    for name, missing in report.missing(methods).items():
        needs.add_row(name, ", ".join(missing) or "none: ready")
    lines = []
    if report.shared:
        some = "\n".join(f"  {prompt}" for prompt in report.shared[:LISTED])
        lines.append(f"{len(report.shared)} prompts stand in both splits; training will refuse this:\n{some}")
    for name, split in splits.items():
        if split.broken:
            rows = "\n".join(f"  row {row}: {reason}" for row, reason in split.broken.items())
            lines.append(f"{len(split.broken)} pairs of the {name} split will be dropped:\n{rows}")
        if split.unlike:
            rows = "\n".join(f"  row {row}: {what}" for row, what in [*split.unlike.items()][:LISTED])
            lines.append(f"{len(split.unlike)} pairs of the {name} split have clips of two lengths or rates:\n{rows}")
    return Group(summary, needs, *map(Text, lines))


def _describe_sizes(sizes: Counter[tuple[int, int]]) -> str:
    total, rest = sum(sizes.values()), len(sizes) - LISTED
    lines = [f"{width}x{height}: {count / total:.0%}" for (width, height), count in sizes.most_common(LISTED)]
    return "\n".join([*lines, *([f"and {rest} more sizes"] if rest > 0 else [])]) or "none"


def _length(clip: Look) -> str:
    rate = "" if clip.fps is None else f" at {clip.fps:.3g} per second"
    return ("1 frame" if clip.frames == 1 else f"{clip.frames} frames") + rate


def _describe_lengths(lengths: Counter[tuple[int, float | None]]) -> str:
    total, rest = sum(lengths.values()), len(lengths) - LISTED
    lines = [
        f"{_length(Look(0, 0, frames, fps))}: {count / total:.0%}"
        for (frames, fps), count in lengths.most_common(LISTED)
    ]
    return "\n".join([*lines, *([f"and {rest} more lengths"] if rest > 0 else [])])
