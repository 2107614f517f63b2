"""Turn what people chose into numbers that a model can be told: `diffpo data users`.

    FOLDER/users.json             how it was made: the embedder, the width
    FOLDER/users.parquet          a row per draw: user_id, seen, prompts and pairs of its support, profile
    FOLDER/states.safetensors     `states` [draws n d]: row i belongs to row i of users.parquet
    FOLDER/embedder.safetensors   what embeds somebody new in the same way
    FOLDER/pairs/                 the pairs that are left: `train` of people who are seen, `test` of the others

A *draw* is a choice of a few *support pairs* of a person, and what the embedder made of them. Support pairs are set
aside by prompt: a pair that shares its prompt with a support pair of the same person stands in neither table, so
nothing that a model is trained on or judged by was told to it before. People who are not seen are in no training row.

What was embedded is kept by content, in a store like all that is derived from tables: the same command continues after
a kill, and any number of processes share the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from diffpo.captioners.base import Portrait
from diffpo.core.block import Block, Count, Range, Seed, Sharing, Whole
from diffpo.curate.directions import find_directions
from diffpo.curate.embedding import COMMAND, Asked, Embedding, Workers, embed_draws, keys_of
from diffpo.curate.support import NAMED, Person, choose_support, split_people
from diffpo.curate.write import Target, check_place, record_of
from diffpo.data.checks import user_name
from diffpo.data.contents import identify
from diffpo.data.records import Source, Table
from diffpo.data.splits import read_splits
from diffpo.disk.files import whole_folder, write_file, write_json
from diffpo.disk.lock import sole_writer
from diffpo.disk.rows import cache_home, digest
from diffpo.errors import UserError
from diffpo.media.users import EMBEDDER

FORMAT = "diffpo users 1"
HOLDS = (
    *("users.json", "users.parquet", "states.safetensors", EMBEDDER, "train.provenance.json"),
    *("pairs", "pairs/*.parquet", "pairs/*.provenance.json"),
)
"""Patterns of what a folder of users holds."""


@dataclass(frozen=True, kw_only=True)
class UserOptions(Block):
    """How people are chosen and what is made of their pairs."""

    pairs: Count = 4
    """Support pairs of a draw. 4 is the paper's."""
    draws: Annotated[int, Range(least=1, most=4096)] = 1
    """Draws of each person, as different as their support pairs allow: training meets another one in each epoch."""
    support: Count | None = None
    """Pairs of each person that draws are made of. Default: `pairs` times `draws`: no two draws share a pair."""
    unseen: Sharing = 0.0
    """Share of the people whom no training row is of, chosen by a hash of their id."""
    directions: Whole = 0
    """Keep so many directions, those in which the seen people differ; 0 keeps vectors as they are."""
    seed: Seed = 0
    """Of the choice of support pairs."""


@dataclass(frozen=True)
class Embedded:
    """What `embed_users` did."""

    folder: Path
    seen: int
    unseen: int
    draws: int
    left_out: dict[str, int]
    """People with too few pairs, and how many they have."""
    rows: dict[str, int]
    """Pairs that are left, by split."""
    largest: float
    """The share of all pairs that the tenth of the people with the most pairs have."""

    def __str__(self) -> str:
        rows = " and ".join(f"{count} {split}" for split, count in self.rows.items())
        few = f"; {len(self.left_out)} people with too few pairs are left out" if self.left_out else ""
        tail = f"; a tenth of the people have {self.largest:.0%} of the pairs" if self.largest > LONG_TAIL else ""
        return (
            f"{self.seen} people who are seen and {self.unseen} who are not, {self.draws} draws; {rows} pairs are no "
            f"support{few}{tail}"
        )


LONG_TAIL = 0.3
"""A tenth of the people with more than this share of all pairs is worth saying."""


def embed_users(
    source: Source,
    embedding: Embedding,
    folder: Path,
    options: UserOptions,
    *,
    workers: Workers | None = None,
    fresh: bool = False,
) -> Embedded:
    """Write a folder of users.

    Args:
        source: The pairs, with `user_id`. The people of a validation split are those that are not seen.
        embedding: Embeds them. With `options.directions` its directions are found anew.
        folder: Where all is written.
        options: Who, and of what.
        workers: This process, and how many there are.
        fresh: Whether a folder that was made in another way may be replaced.

    Raises:
        UserError: The table names no people, nobody has enough pairs, an image is broken, or the folder holds something
            else.
    """
    workers, splits = workers or Workers(), read_splits(source)
    tables = [splits.train] + ([splits.validation] if splits.validation else [])
    people = split_people(tables, options.unseen, options.seed)
    needed = options.support or options.pairs * options.draws
    drawn, left_out = choose_support(people, needed, options.pairs, options.draws, options.seed)
    recipe = {"made by": COMMAND, "options": asdict(options), "embedder": embedding.embedder.provenance}
    recipe |= {"like": embedding.title} if embedding.directions is not None else {}
    recipe |= {"tables": [identify(table) for table in tables]}
    asked = [Asked(person, rows) for person in drawn for rows in person.draws]
    check_place(folder, recipe, fresh=fresh, holds=HOLDS)
    portraits = embed_draws(asked, embedding.embedder, workers)
    _check_alike(asked, portraits)
    if workers.rank:
        return _done(folder, drawn, left_out, tables)
    with sole_writer(folder, COMMAND):
        embedding = _with_directions(embedding, asked, portraits, options.directions)
        with whole_folder(folder.absolute()) as temporary:
            _write(temporary, asked, portraits, embedding, options.pairs)
            _write_pairs(temporary, drawn, tables, recipe)
            write_json(record_of(temporary, "train"), {"recipe": recipe})
    return _done(folder, drawn, left_out, tables)


def embed_new(source: Source, embedding: Embedding, names: Sequence[str]) -> Path:
    """Embed people by all of their pairs, for sampling: there is nothing else to be made of these.

    Args:
        source: The pairs. Without `user_id` all of them are those of the one person who is asked for.
        embedding: Embeds them as the people were that a model was trained on.
        names: Who is asked for.

    Returns:
        A folder of users in the cache, one draw each.

    Raises:
        UserError: Somebody has no pairs in the table, or an image is broken.
    """
    table = read_splits(source).train
    rows: dict[str, list[int]] = {name: [] for name in names}
    given = table.column("user_id") if "user_id" in table.rows.column_names else [None] * len(table)
    known = [user_name(name) for name in given]
    if len(names) == 1 and not any(known):
        known = list(names) * len(table)
    for row, name in enumerate(known):
        rows.get(name or "", []).append(row)
    if missing := [name for name, own in rows.items() if not own]:
        others = ", ".join(sorted({*filter(None, known)})[:NAMED]) or "nobody who is named"
        raise UserError(
            f"{table.path} has no pairs of {', '.join(missing)}: a user needs pairs of their own. There are pairs of "
            f"{others}."
        )
    asked = [Asked(Person(name, False, table, {}), own) for name, own in rows.items()]
    portraits, keys = embed_draws(asked, embedding.embedder, Workers()), keys_of(asked)
    _check_alike(asked, portraits)
    folder = cache_home() / "new-users" / digest(embedding.title, keys.tobytes(), *names).hex()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder) as temporary:
        _write(temporary, asked, portraits, embedding, max(map(len, rows.values())))
    return folder


def _check_alike(asked: Sequence[Asked], portraits: Sequence[Portrait]) -> None:
    """Refuse states of different shapes, such as vectors of different widths in a table."""
    of = {portrait.states.shape: one.person.name for one, portrait in zip(asked, portraits, strict=True)}
    if len(of) > 1:
        told = ", ".join(f"{'x'.join(map(str, shape))} of {name}" for shape, name in of.items())
        raise UserError(f"all people need states of one shape; there are {told}. Remove the rows of some of them.")


def _with_directions(
    embedding: Embedding, asked: Sequence[Asked], portraits: Sequence[Portrait], count: int
) -> Embedding:
    """Find the directions in which seen people differ, where they are asked for."""
    if not count:
        return embedding
    seen = [place for place, one in enumerate(asked) if one.person.seen]
    vectors = np.stack([portraits[place].states[0] for place in seen])
    return Embedding(embedding.embedder, find_directions(vectors, [asked[i].person.name for i in seen], count))


def _write(
    folder: Path, asked: Sequence[Asked], portraits: Sequence[Portrait], embedding: Embedding, pairs: int
) -> None:
    """Write all but the tables."""
    import pyarrow
    from pyarrow import parquet
    from safetensors.torch import save

    states = embedding.finish(np.stack([portrait.states for portrait in portraits]))
    if nobody := sorted({one.person.name for one, x in zip(asked, states, strict=True) if not x.any()}):
        raise UserError(
            f"the support pairs of {len(nobody)} people say nothing of them, for example {', '.join(nobody[:NAMED])}: "
            "their states are zeros, which are nobody's. Are the images of their pairs the same, or their vectors "
            "zeros? Remove their rows from the table, or use another embedder."
        )
    rows = [
        {
            "user_id": one.person.name,
            "seen": one.person.seen,
            "prompts": [one.person.table.cell(row, "prompt") for row in one.rows],
            "pairs": [f"row {one.person.table.origin[row]}" for row in one.rows],
            "profile": portrait.profile,
        }
        for one, portrait in zip(asked, portraits, strict=True)
    ]
    schema = pyarrow.schema(
        [
            ("user_id", pyarrow.string()),
            ("seen", pyarrow.bool_()),
            ("prompts", pyarrow.list_(pyarrow.string())),
            ("pairs", pyarrow.list_(pyarrow.string())),
            ("profile", pyarrow.string()),
        ]
    )
    table = pyarrow.Table.from_pylist(rows, schema=schema)
    write_file(folder / "users.parquet", lambda file: parquet.write_table(table, file))
    write_file(folder / "states.safetensors", save({"states": torch.from_numpy(states).to(torch.float16)}))
    embedding.write(folder / EMBEDDER)
    said = {"embedder": embedding.title, "width": states.shape[2], "states": states.shape[1], "pairs": pairs}
    write_json(folder / "users.json", {"format": FORMAT, **said})


def _write_pairs(folder: Path, people: Sequence[Person], tables: Sequence[Table], recipe: dict[str, Any]) -> None:
    """Write the pairs that are no support: of those who are seen, and of the others."""
    for split, seen in (("train", True), ("test", False)):
        for table in tables:
            rows = sorted(row for one in people if one.seen == seen and one.table is table for row in one.left)
            if rows:
                kept = table.rows.select(rows)
                target = Target(folder / "pairs", split, table, recipe)
                target.write(kept, {"user_id": [user_name(name) for name in kept["user_id"]]})


def _done(folder: Path, people: Sequence[Person], left_out: dict[str, int], tables: Sequence[Table]) -> Embedded:
    counts = sorted((person.count for person in people), reverse=True)
    top = sum(counts[: max(1, len(counts) // 10)])
    return Embedded(
        folder=folder,
        seen=sum(person.seen for person in people),
        unseen=sum(not person.seen for person in people),
        draws=sum(len(person.draws) for person in people),
        left_out=left_out,
        rows={
            split: sum(len(person.left) for person in people if person.seen == seen)
            for split, seen in (("train", True), ("test", False))
        },
        largest=top / (sum(counts) + sum(left_out.values())),
    )
