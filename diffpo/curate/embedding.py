"""Embed people: an embedder with the directions that are kept of its vectors, the file of both, and draws of pairs.

What was embedded is kept by content, in a store like all that is derived from tables.
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
from diffpo.curate.directions import along
from diffpo.curate.support import Person
from diffpo.data.contents import read_contents
from diffpo.data.encode import BOTH, describe_broken_image
from diffpo.data.records import Table
from diffpo.disk.files import write_file
from diffpo.disk.rows import Row, RowStore, as_keys, digest, key_at
from diffpo.errors import UserError
from diffpo.media.frames import BrokenImage, decode_whole

COMMAND = "diffpo data users"
ROWS_PER_FILE = 16
"""A kill costs so many embeddings at most: a profile may take a minute."""
LONG = 60
"""Characters of a setting that the name of an embedder has room for."""


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


def embed_draws(asked: Sequence[Asked], embedder: UserEmbedder, workers: Workers) -> list[Portrait]:
    """Embed every draw; what was embedded before is read."""
    read = _vector if embedder.reads_vectors else read_choice
    store = RowStore("users", {"format": 1, **embedder.provenance}, rows_per_file=ROWS_PER_FILE)
    keys = keys_of(asked)

    def compute(some: list[int]) -> Iterator[Row]:
        for place in some:
            portrait = embedder.embed([read(asked[place].person.table, row) for row in asked[place].rows])
            yield Row({"profile": portrait.profile}, {"states": torch.from_numpy(portrait.states)})

    store.fill(keys, compute, "Embedding people", rank=workers.rank, world=workers.world)
    workers.wait()
    store.refresh()
    rows = [store[key_at(keys, place)] for place in range(len(asked))]
    return [Portrait(row.tensors["states"].numpy(), row.values["profile"]) for row in rows]


def keys_of(asked: Sequence[Asked]) -> NDArray[np.bytes_]:
    """The hashes of all that draws are made of: images and prompts, in their order."""
    tables = {id(one.person.table): one.person.table for one in asked}
    contents = {key: {side: read_contents(table, side).keys for side in BOTH} for key, table in tables.items()}
    prompts = {key: table.column("prompt") for key, table in tables.items()}
    embedded = {key: table for key, table in tables.items() if "emb" in table.rows.column_names}
    vectors = {key: [repr(cell) for cell in table.column("emb")] for key, table in embedded.items()}
    keys = []
    for one in asked:
        table, parts = id(one.person.table), list[bytes | str]()
        for row in one.rows:
            sides = one.person.table.sides(row)
            parts += [*(key_at(contents[table][side], row) for side in sides), prompts[table][row]]
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


def read_choice(table: Table, row: int) -> Choice:
    """Decode a pair of somebody.

    Raises:
        UserError: One of its images is broken.
    """
    images = {}
    for side in BOTH:
        cell = table.cell(row, side)
        try:
            images[side] = decode_whole(cell).first
        except BrokenImage as error:
            raise UserError(
                f"row {table.origin[row]} of {table.path}, a pair of {table.cell(row, 'user_id')}, cannot be "
                f"used: {describe_broken_image(side, cell, error)}. Remove its row from the table."
            ) from error
    return Choice(table.cell(row, "prompt"), *(images[side] for side in table.sides(row)))
