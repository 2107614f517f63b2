"""Whom images are made for: a user, or a blend of several.

    alice                   one user: the states of their first draw
    alice:0.7,bob:0.3       a blend: u = sum of share_i u_i; shares that do not sum to one are divided by their sum

An adapter ends in a layer norm, which forgets how long a state is. How much the users of a blend have in common is said
by its length, so the adapter's strength is multiplied with |u| / sum of share_i |u_i|: 1 for users who are alike, 0 for
opposites of equal shares, for whom the base is what is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isclose, isfinite
from typing import Any

import torch
from torch import Tensor

from diffpo.disk.rows import digest
from diffpo.errors import UserError
from diffpo.media.folder import Media
from diffpo.media.users import Users
from diffpo.models.finding import Model
from diffpo.models.user_adapter import check_states
from diffpo.models.user_files import embedding_of


@dataclass(frozen=True)
class Audience:
    """Whom images are for."""

    described: dict[str, Any]
    """Who they are, for the settings of the images."""
    states: Tensor
    """`[n s d]` of different users or blends."""
    strengths: Sequence[float]
    """`[n]` what the strength that is asked for is multiplied with."""
    places: Mapping[str, int] | None = None
    """Which of them each file is for; None: all files are for the only one."""

    def parts(self, asked: Sequence[Media]) -> Iterator[tuple[list[int], Tensor, float]]:
        """Sort some images by the strength with which they are told: places in `asked`, states `[b s d]`, strength."""
        places = [0 if self.places is None else self.places[item.file] for item in asked]
        for strength in dict.fromkeys(self.strengths[place] for place in places):
            some = [i for i, place in enumerate(places) if self.strengths[place] == strength]
            yield some, self.states[[places[i] for i in some]], strength


def find_audience(folder: str, blend: Mapping[str, float], model: Model) -> Audience:
    """Find the states of a blend, and see that a model can be told them.

    Raises:
        UserError: The model has no user adapter or one for other states, or a user is unknown.
    """
    users = open_users(folder, model)
    shares, _ = normalised(blend)
    states, strength = blended(users, shares)
    return Audience({"blend": shares, "states": digest(states.numpy().tobytes()).hex()}, states[None], [strength])


def open_users(folder: str, model: Model) -> Users:
    """Open a folder of users that a model can be told.

    Raises:
        UserError: The model has no user adapter, or one for other states.
    """
    users = Users.open(folder)
    if model.user_adapter is None:
        raise UserError(
            "this model cannot be told whom images are for: it has no user adapter. Give a run of `diffpo train` with "
            "model=user as tuned."
        )
    check_states(users.embedding, embedding_of(model.user_adapter.path))
    return users


def parse_blend(text: str) -> dict[str, float]:
    """Read `alice:0.7,bob:0.3`; a name may hold a colon, and the last one counts.

    Raises:
        UserError: It is no such list, or a user stands there twice.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.strip().rpartition(":")
        try:
            value = float(share)
        except ValueError:
            name = ""
        if not name or name in found:
            raise UserError(f"a blend is {text!r}; write users with their shares, each once: alice:0.7,bob:0.3.")
        found[name] = value
    return found


def normalised(shares: Mapping[str, float]) -> tuple[dict[str, float], bool]:
    """Make shares sum to one; returns them, and whether they did not.

    Raises:
        UserError: A share is negative or no number, or all are zero.
    """
    total = sum(shares.values())
    if not all(isfinite(share) and share >= 0 for share in shares.values()) or not total > 0:
        given = ", ".join(f"{name}:{share:g}" for name, share in shares.items())
        raise UserError(f"the shares of a blend are numbers from 0, not all of them 0; got {given}.")
    return {name: share / total for name, share in shares.items()}, not isclose(total, 1, abs_tol=1e-6)


def blended(users: Users, shares: Mapping[str, float]) -> tuple[Tensor, float]:
    """The states of a blend, `[n d]` float32, and what is left of the strength, from 0 to 1.

    Raises:
        UserError: A user is unknown.
    """
    parts = torch.stack([share * users.states(users.draws_of(name)[0]) for name, share in shares.items()])
    states, lengths = parts.sum(0), parts.flatten(1).norm(dim=1).sum()
    return states, min(1.0, float(states.norm() / lengths)) if lengths > 0 else 0.0


def stacked(described: dict[str, Any], blends: Sequence[tuple[Tensor, float]], places: Mapping[str, int]) -> Audience:
    """Several blends (see `blended`) as one audience, and which of them each file is for."""
    return Audience(described, torch.stack([states for states, _ in blends]), [part for _, part in blends], places)
