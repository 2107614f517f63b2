"""What is known of users' tastes: states that an embedder made of a few of each user's pairs, as a folder holds them.

    users.json          what it is, who made the states (`embedder`), their `width`, and how many `states` each draw has
    users.parquet       a row per draw of support pairs: user_id, seen, prompts (those of its pairs), ...
    states.safetensors  one tensor `states` [draws n d]; its row i is that of the table's row i
    embedder.safetensors    what embeds somebody new in the same way

A draw is a choice of some of a user's pairs. States are stored as the adapter takes them; zeros are nobody's.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from pathlib import Path

import pyarrow
import torch
from pyarrow import parquet
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffpo.core.types import Embedding
from diffpo.disk.published import published
from diffpo.errors import UserError

FORMAT = "diffpo users 1"
"""What the folder says that it is."""
INDEX, TABLE, STATES = "users.json", "users.parquet", "states.safetensors"
EMBEDDER = "embedder.safetensors"
NAMED = 8
"""Users that a message names."""


@dataclass(frozen=True)
class Users:
    """Users' states, read from a folder row by row."""

    folder: Path
    embedding: Embedding
    """Who made the states, and how wide they are."""
    count: int
    """States of each draw."""
    draws: Mapping[str, tuple[int, ...]]
    """Rows of each user's draws, by the user's name, in the folder's order."""
    seen: Mapping[str, bool]
    """Whether a user is one of those to learn from."""
    prompts: Sequence[Sequence[str]]
    """Prompts of each draw's pairs."""

    @staticmethod
    def open(place: str | Path) -> Users:
        """Read all but the states.

        Raises:
            UserError: Something is missing or broken, or does not fit together.
        """
        folder = Path(place).expanduser()
        advice = "Give a folder that `diffpo data users` wrote"
        if missing := [name for name in (INDEX, TABLE, STATES) if not (folder / name).is_file()]:
            raise UserError(f"{folder} holds no users' states: it has no {', '.join(missing)}. {advice}.")
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            table = parquet.read_table(folder / TABLE, columns=["user_id", "seen", "prompts"]).to_pydict()
            with safe_open(folder / STATES, "pt") as file:
                shape = tuple(file.get_slice("states").get_shape())
            embedding, count = Embedding(str(index["embedder"]), int(index["width"])), int(index["states"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError, pyarrow.ArrowException) as error:
            raise UserError(f"the users in {folder} cannot be read ({error}). {advice}.") from error
        if index.get("format") != FORMAT:
            raise UserError(
                f"{folder} was written by another version of diffpo: {INDEX} says format {index.get('format')!r}, and "
                f"this version reads {FORMAT!r}. Run the same `diffpo data users` again, with --fresh or another --out."
            )
        if shape != (len(table["user_id"]), count, embedding.width):
            raise UserError(
                f"the files in {folder} do not fit together: {INDEX} says {count} states of "
                f"{embedding.width}; {TABLE} has {len(table['user_id'])} rows; {STATES} holds {shape}. {advice}."
            )
        if None in (*table["user_id"], *table["seen"], *table["prompts"], *chain(*filter(None, table["prompts"]))):
            raise UserError(f"{folder / TABLE} has a draw of nobody, or without its prompts. {advice}.")
        draws: dict[str, list[int]] = defaultdict(list)
        for row, name in enumerate(table["user_id"]):
            draws[name].append(row)
        seen = dict(zip(table["user_id"], table["seen"], strict=True))
        kept = {name: tuple(rows) for name, rows in draws.items()}
        return Users(folder, embedding, count, kept, seen, table["prompts"])

    def draws_of(self, name: str) -> tuple[int, ...]:
        """Rows of a user's draws.

        Raises:
            UserError: There is no such user.
        """
        if name in self.draws:
            return self.draws[name]
        near = get_close_matches(name, list(self.draws), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        more = f", and {len(self.draws) - NAMED} more" if len(self.draws) > NAMED else ""
        raise UserError(f"{self.folder} knows no user {name!r}.{hint} There are {_named(list(self.draws))}{more}.")

    def states(self, row: int) -> Tensor:
        """States of a draw, `[n d]` float32.

        Raises:
            UserError: They are no numbers.
        """
        with safe_open(self.folder / STATES, "pt") as file:
            states = file.get_slice("states")[row].float()
        if not states.isfinite().all():
            raise UserError(
                f"draw {row} in {self.folder / STATES} holds what is no finite number: embed its user anew."
            )
        return states

    @property
    def nobody(self) -> Tensor:
        """States of the null user, `[n d]` float32."""
        return torch.zeros(self.count, self.embedding.width)


def copy_embedder(users: Path, folder: Path) -> None:
    """Put what embeds somebody new into a folder that is published, if users have it; it names no place of here.

    Raises:
        UserError: The file is broken.
    """
    file = users / EMBEDDER
    if not file.is_file():
        return
    try:
        with safe_open(file, "pt") as content:
            said = json.loads(content.metadata()["embedder"])
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"{file} cannot be read ({error}). Bring it back, or remove it and run the same command again: what is "
            "exported then cannot embed anybody new."
        ) from error
    save_file(tensors, folder / EMBEDDER, {"embedder": json.dumps(published(said))})


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED])
