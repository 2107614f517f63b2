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

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from diffpo.captioners.base import Choice, Portrait, UserEmbedder
from diffpo.core.block import Block, Count, Seed, Sharing, Whole
from diffpo.curate.directions import along, find_directions
from diffpo.curate.support import NAMED, Person, choose_support, split_people
from diffpo.curate.write import Target, check_place, record_of
from diffpo.data.contents import read_contents
from diffpo.data.encode import BOTH, describe_broken_image
from diffpo.data.records import Source, Table
from diffpo.data.splits import read_splits
from diffpo.disk.files import whole_folder, write_file, write_json
from diffpo.disk.lock import sole_writer
from diffpo.disk.rows import Row, RowStore, as_keys, cache_home, digest, key_at
from diffpo.errors import UserError
from diffpo.media.frames import BrokenImage, decode_whole

FORMAT = "diffpo users 1"
COMMAND = "diffpo data users"
EMBEDDER = "embedder.safetensors"
LONG = 60
"""Characters of a setting that the name of an embedder has room for."""
ROWS_PER_FILE = 16
"""A kill costs so many embeddings at most: a profile may take a minute."""


@dataclass(frozen=True, kw_only=True)
class UserOptions(Block):
    """How people are chosen and what is made of their pairs."""

    pairs: Count = 4
    """Support pairs of a draw. 4 is the paper's."""
    draws: Count = 1
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


@dataclass(frozen=True)
class Workers:
    """The processes that share the work."""

    rank: int = 0
    world: int = 1
    wait: Callable[[], None] = lambda: None
    """Returns once all of them have come here."""


@dataclass(frozen=True)
class Asked:
    """A draw that is to be embedded."""

    person: Person
    rows: list[int]
    """Of its support pairs, in the person's table."""


def _short(value: Any) -> str:
    """A value as it is, or its hash where it is long."""
    text = str(value)
    return text if len(text) <= LONG else digest(text).hex()[:8]


class Embedding:
    """An embedder with the directions that are kept of what it gives."""

    def __init__(self, embedder: UserEmbedder, directions: NDArray[np.floating] | None = None):
        self.embedder, self.directions = embedder, directions

    @property
    def title(self) -> str:
        """What names the embedder, its weights and directions, for people and for comparisons."""
        said = [f"{key} {_short(value)}" for key, value in self.embedder.provenance.items() if key != "embedder"]
        if self.directions is not None:
            kept = np.asarray(self.directions, np.float32)
            said.append(f"{kept.shape[1]} directions {digest(kept.tobytes()).hex()[:8]}")
        return f"{self.embedder.name} ({', '.join(said)})"

    def finish(self, states: NDArray[np.floating]) -> NDArray[np.float32]:
        """Bring what the embedder gave, `[... n d]`, into the form that is stored."""
        return along(states, self.directions) if self.embedder.is_vector else self.embedder.normalise(states)

    def write(self, file: Path) -> None:
        """Write what embeds somebody new in the same way."""
        from safetensors.torch import save

        said = {"name": self.embedder.name, "options": asdict(self.embedder)}
        none = torch.zeros(0, 0)
        kept = none if self.directions is None else torch.from_numpy(np.asarray(self.directions, np.float32))
        write_file(file, save({"directions": kept}, {"embedder": json.dumps(said)}))


def read_embedder(file: Path) -> tuple[dict[str, Any], NDArray[np.float32] | None]:
    """Read the name and the options of an embedder, and the directions that are kept.

    Raises:
        UserError: The file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as content:
            said = json.loads(content.metadata()["embedder"])
            directions = content.get_tensor("directions")
        assert isinstance(said["name"], str) and isinstance(said["options"], dict)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(
            f"{file} says nothing of how people are embedded ({error}): give a folder that `{COMMAND}` wrote."
        ) from error
    return said, directions if directions.size else None


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
    asked = [Asked(person, rows) for person in drawn for rows in person.draws]
    check_place(folder, recipe, fresh=fresh)
    portraits = _embed(asked, embedding.embedder, workers)
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
    known = table.column("user_id") if "user_id" in table.rows.column_names else [None] * len(table)
    if len(names) == 1 and not any(known):
        known = list(names) * len(table)
    for row, name in enumerate(map(str, known)):
        rows.get(name, []).append(row)
    if missing := [name for name, own in rows.items() if not own]:
        others = ", ".join(sorted(set(map(str, known)))[:NAMED])
        raise UserError(
            f"{table.path} has no pairs of {', '.join(missing)}: a user needs pairs of their own. There are pairs of "
            f"{others}."
        )
    asked = [Asked(Person(name, False, table, {}), own) for name, own in rows.items()]
    portraits, keys = _embed(asked, embedding.embedder, Workers()), _keys(asked)
    folder = cache_home() / "new-users" / digest(embedding.title, keys.tobytes(), *names).hex()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder) as temporary:
        _write(temporary, asked, portraits, embedding, max(map(len, rows.values())))
    return folder


def _embed(asked: Sequence[Asked], embedder: UserEmbedder, workers: Workers) -> list[Portrait]:
    """Embed every draw; what was embedded before is read."""
    read = _vector if embedder.reads_vectors else _choice
    store = RowStore("users", {"format": 1, **embedder.provenance}, rows_per_file=ROWS_PER_FILE)
    keys = _keys(asked)

    def compute(some: list[int]) -> Iterator[Row]:
        for place in some:
            portrait = embedder.embed([read(asked[place].person.table, row) for row in asked[place].rows])
            yield Row({"profile": portrait.profile}, {"states": torch.from_numpy(portrait.states)})

    store.fill(keys, compute, "Embedding people", rank=workers.rank, world=workers.world)
    workers.wait()
    store.refresh()
    rows = [store[key_at(keys, place)] for place in range(len(asked))]
    return [Portrait(row.tensors["states"].numpy(), row.values["profile"]) for row in rows]


def _keys(asked: Sequence[Asked]) -> NDArray[np.bytes_]:
    """The hashes of all that draws are made of: images and prompts, in their order."""
    tables = {id(one.person.table): one.person.table for one in asked}
    contents = {key: [read_contents(table, side).keys for side in BOTH] for key, table in tables.items()}
    prompts = {key: table.column("prompt") for key, table in tables.items()}
    embedded = {key: table for key, table in tables.items() if "emb" in table.rows.column_names}
    vectors = {key: [repr(cell) for cell in table.column("emb")] for key, table in embedded.items()}
    keys = []
    for one in asked:
        table, parts = id(one.person.table), list[bytes | str]()
        for row in one.rows:
            parts += [*(key_at(found, row) for found in contents[table]), prompts[table][row]]
            parts += [vectors[table][row]] if table in vectors else []
        keys.append(digest(*parts))
    return as_keys(keys)


def _vector(table: Table, row: int) -> Choice:
    """Read what the table says of the person who chose a pair; the pair itself is not looked at."""
    if "emb" not in table.rows.column_names:
        raise UserError(
            f"{table.path} has no column `emb`; it has {', '.join(table.rows.column_names)}. If the vectors are in a "
            "column of another name, give --columns emb=NAME."
        )
    nothing = Image.new("RGB", (1, 1))
    return Choice(table.cell(row, "prompt"), nothing, nothing, _as_array(table.cell(row, "emb")))


def _as_array(cell: Any) -> NDArray[np.float64] | None:
    try:
        return np.asarray(cell, np.float64)
    except (TypeError, ValueError):
        return None


def _choice(table: Table, row: int) -> Choice:
    """Decode a support pair.

    Raises:
        UserError: One of its images is broken.
    """
    images = {}
    for side in BOTH:
        cell = table.cell(row, side)
        try:
            images[side] = decode_whole(cell).frames[0]
        except BrokenImage as error:
            raise UserError(
                f"row {table.origin[row]} of {table.path}, a support pair of {table.cell(row, 'user_id')}, cannot be "
                f"used: {describe_broken_image(side, cell, error)}. Remove its row from the table."
            ) from error
    return Choice(table.cell(row, "prompt"), images["chosen"], images["rejected"])


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
                target.write(kept, {"user_id": [str(name) for name in kept["user_id"]]})


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
