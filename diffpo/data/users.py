"""Whose pairs a table holds, for models that are told the user: each row gets states of its user's *other* pairs.

A pair that any of its user's states were made of is a support pair, and is never learned from or judged: what it taught
would be told beside it. Pairs are recognised by their prompts. Which draw of support pairs a row gets is drawn anew in
every epoch.
"""

import logging

import numpy as np
import torch
from torch import Tensor

from diffpo.core.types import Rng
from diffpo.data.checks import user_name
from diffpo.data.records import Table
from diffpo.data.splits import normalise
from diffpo.disk.tables import hash_file
from diffpo.disk.weights import fingerprint
from diffpo.errors import UserError
from diffpo.media.users import TABLE, Users

log = logging.getLogger(__name__)
REASONS = (
    "are used",
    "have no user_id",
    "are of users without states",
    "are of unseen users",
    "are support pairs of their user",
)
"""What becomes of rows."""


class RowUsers:
    """The column `user_id` of a table, turned into states when a batch asks for them."""

    left_out: np.ndarray
    """Rows that cannot be used, sorted."""

    def __init__(self, table: Table, users: Users, dropout: float | None):
        """Find the rows that can be used.

        Args:
            table: The pairs; it has the column `user_id`.
            users: States of users.
            dropout: Probability that a row gets the null user, for a table to learn from, whose rows of unseen users
                are left out; None: the table is held out, and has neither.

        Raises:
            UserError: No row can be used.
        """
        self._table, self._users, self._dropout = table, users, dropout or 0.0
        self._known = {name for name in users.draws if users.seen[name] or dropout is None}
        self._support = {
            (name, normalise(prompt))
            for name, rows in users.draws.items()
            for row in rows
            for prompt in users.prompts[row]
        }
        columns = (table.in_parts(table.arrow, column) for column in ("user_id", "prompt"))
        parts = [np.array([*map(self._reason, *part)], np.int8) for part in zip(*columns, strict=True)]
        reasons = np.concatenate(parts)
        self.left_out = np.flatnonzero(reasons)
        counts = np.bincount(reasons, minlength=len(REASONS))
        told = ", ".join(f"{count} {REASONS[k]}" for k, count in enumerate(counts.tolist()) if k and count)
        if len(self.left_out) == len(table):
            raise UserError(
                f"no row of {table.path} can be used with the users in {users.folder}: of {len(table)} rows {told}. "
                "Give the folder that `diffpo data users` made of this table (data.users)"
            )
        if told:
            log.warning(f"{table.path}: of {len(table)} rows {told}: they are left out.")

    def _reason(self, who: str | float | None, prompt: str) -> int:
        """Why a row is left out, a place in `REASONS`."""
        name = user_name(who)
        if name is None:
            return 1
        if name not in self._users.draws:
            return 2
        if name not in self._known:
            return 3
        return 4 if (name, normalise(prompt)) in self._support else 0

    @property
    def identity(self) -> str:
        """Changes with the users' states."""
        return f"{fingerprint(self._users.folder)} {hash_file(self._users.folder / TABLE).hex()}"

    def states(self, rng: Rng) -> Tensor:
        """States of the users of the rows of `rng`, `[b n d]` float32; zeros where the user is dropped."""
        index = rng.index.tolist()
        names = self._table.arrow("user_id", index).to_pylist()
        drawn, dropped = rng.uniform("user").tolist(), (rng.uniform("user_dropout") < self._dropout).tolist()
        return torch.stack(
            [
                self._users.nobody if drop else self._pick(user_name(name) or "", u)
                for name, u, drop in zip(names, drawn, dropped, strict=True)
            ]
        )

    def _pick(self, name: str, u: float) -> Tensor:
        draws = self._users.draws_of(name)
        return self._users.states(draws[int(u * len(draws))])
