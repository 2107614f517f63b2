"""Make tables of other tables: read them, compute something slow for every image or text, write.

    tables = read_tables(source)
    with writing("diffpo data score", tables, recipe, folder, fresh=False) as targets:
        answers = ask_of_images("scores", "score", recipe, table, BOTH, judge, batch, "Scoring")
        targets[0].write(table.rows, columns)

What was computed is kept by content: under the hash of the image and its prompt, in a store (`disk.rows`) whose name
depends on what computes it. So a run that was killed loses little, and the same images in another table, or another
temperature, compute nothing anew.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffpo.curate.write import Target
from diffpo.data.contents import read_contents
from diffpo.data.records import Source, Table
from diffpo.data.splits import load_splits
from diffpo.disk.ahead import AHEAD, WORKERS, ahead
from diffpo.disk.lock import sole_writer
from diffpo.disk.rows import Row, RowStore, digest, key_at
from diffpo.media.frames import BrokenImage, Clip, decode_whole

ROWS_PER_FILE = 64
"""A kill costs so many values at most: a caption may take seconds."""


def read_tables(source: Source) -> dict[str, Table]:
    """Read what is to be derived from: `train`, and `validation` if the source has a table or split of its own for it.

    A `validation_fraction` is left to be divided off the derived table, where it chooses the same prompts.
    """
    splits = load_splits(dataclasses.replace(source, validation_fraction=0.0))
    return {"train": splits.train} | ({"validation": splits.validation} if splits.validation else {})


@contextlib.contextmanager
def writing(
    command: str, tables: Mapping[str, Table], recipe: Mapping[str, Any], folder: Path, *, fresh: bool
) -> Iterator[list[Target]]:
    """Hold a folder against other commands, and find the splits that are still to be written there."""
    targets = [Target(folder, split, table, {"made by": command, **recipe}) for split, table in tables.items()]
    with sole_writer(folder, command):
        yield [target for target in targets if not target.is_finished(fresh=fresh)]


@dataclass(frozen=True)
class Asked:
    """An image or a clip of a table about which something is asked."""

    row: int
    side: str
    prompt: str
    key: bytes
    """The hash of image and prompt."""
    media: Clip | BrokenImage
    """All frames of a clip; of an animation, which stands for a picture, the first one."""


def ask_of_images(
    kind: str,
    name: str,
    recipe: Mapping[str, Any],
    table: Table,
    sides: Sequence[str],
    ask: Callable[[list[Asked]], Sequence[Any]],
    batch: int,
    title: str,
) -> dict[str, list[Any]]:
    """Ask something about every image of some sides and its prompt; what was answered before is read from the cache.

    `ask` answers for at most `batch` images that could be decoded, one plain JSON value each, which the cache keeps
    under `name`. For `kind` and `recipe` see `compute_values`.

    Returns:
        By side, an answer for each row, or a `BrokenImage` that says why there is none.
    """
    prompts, contents = table.column("prompt"), [read_contents(table, side) for side in sides]
    images = np.stack([found.keys for found in contents], axis=1).reshape(-1)  # place i: side i % s of row i // s
    keys = np.zeros_like(images)
    for place in np.flatnonzero(images != b"").tolist():
        keys[place] = digest(key_at(images, place), prompts[place // len(sides)])

    def read(place: int) -> Asked:
        row, number = divmod(place, len(sides))
        try:
            media = decode_whole(table.cell(row, sides[number]))
        except BrokenImage as error:
            media = error
        return Asked(row, sides[number], prompts[row], key_at(keys, place), media)

    def compute(some: Sequence[int]) -> Iterator[dict[str, Any]]:
        asking = ahead(read, some, workers=WORKERS, depth=batch + WORKERS, weigh=_bytes)
        for group in _groups(asking, batch):
            good = [asked for asked in group if not isinstance(asked.media, BrokenImage)]
            given = iter(ask(good) if good else [])
            for asked in group:
                broken = isinstance(asked.media, BrokenImage)
                yield {"broken": str(asked.media)} if broken else {name: next(given)}

    answers: dict[str, list[Any]] = {side: [] for side in sides}
    for place, value in enumerate(compute_values(kind, recipe, keys, compute, title)):
        row, number = divmod(place, len(sides))
        known = {"broken": contents[number].unreadable[row]} if value is None else value
        answers[sides[number]].append(known[name] if name in known else BrokenImage(known["broken"]))
    return answers


def _bytes(asked: Asked) -> int:
    return 0 if isinstance(asked.media, BrokenImage) else asked.media.nbytes


def _groups(asking: Iterable[Asked], batch: int) -> Iterator[list[Asked]]:
    """Cut into groups of `batch` images, or of fewer clips where they take more memory together than `AHEAD`."""
    group: list[Asked] = []
    for asked in asking:
        group.append(asked)
        if len(group) == batch or sum(map(_bytes, group)) > AHEAD:
            yield group
            group = []
    if group:
        yield group


def compute_values(
    kind: str,
    recipe: Mapping[str, Any],
    keys: np.ndarray,
    compute: Callable[[list[int]], Iterable[Mapping[str, Any]]],
    title: str,
) -> list[Mapping[str, Any] | None]:
    """Compute something for every key `[n]`; what an earlier call has finished is read, not computed.

    `kind` names what is computed (`scores`, `captions`), and `recipe` is all that decides a value besides its key.
    `compute` yields the values, plain ones, of the places in `keys` that it is given, in that order.

    Returns:
        `n` values; None where the key is empty.
    """
    store, wanted = RowStore(kind, recipe, rows_per_file=ROWS_PER_FILE), np.flatnonzero(keys != b"")
    store.fill(keys[wanted], lambda some: map(Row, compute(wanted[some].tolist())), title)
    codes, kinds = store.values(keys[wanted])
    values: list[Mapping[str, Any] | None] = [None] * len(keys)
    for place, code in zip(wanted.tolist(), codes.tolist(), strict=True):
        values[place] = kinds[code]
    return values
