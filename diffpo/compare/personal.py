"""Does a model that is told its users please them: win rates over users, seen and unseen, and who is told from whom.

A *verdict* is what one user's judge says of two images for one of the user's prompts: 1 where the first one is better,
0 where the second one is, 1/2 for a tie. Win rates are means over users (`users.user_win_rate`).

    own against base      the model told the user, and the same model told nobody
    own against others    the control: the same model told somebody else. It wins only by being told the right user
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffpo.compare.stats import USUAL, Resampling
from diffpo.compare.users import UserWinRate, user_win_rate

GROUPS = {"unseen": False, "seen": True}
"""Names of the users that a model was trained without and with."""


@dataclass(frozen=True)
class Verdict:
    """One comparison by one user."""

    user: str
    seen: bool
    prompt: str
    share: float
    """What the first image gets of it."""


@dataclass(frozen=True, kw_only=True)
class PersonalResult:
    """One kind of image against another one."""

    first: str
    second: str
    groups: dict[str, UserWinRate]
    """By `unseen` and `seen`, where there are at least two such users."""
    users: dict[str, float]
    """Mean share of each user."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a JSON file."""
        return {
            "first": self.first,
            "second": self.second,
            "groups": {name: asdict(rate) for name, rate in self.groups.items()},
            "users": self.users,
        }


def summarise(
    first: str, second: str, verdicts: Sequence[Verdict], *, resampling: Resampling = USUAL
) -> PersonalResult:
    """Sum up what users say of two kinds of images.

    Raises:
        UserError: There are no two users of one group.
    """
    groups = {}
    for name, seen in GROUPS.items():
        some = [verdict for verdict in verdicts if verdict.seen == seen]
        if len({verdict.user for verdict in some}) > 1:
            columns = [v.share for v in some], [v.prompt for v in some], [v.user for v in some]
            groups[name] = user_win_rate(*columns, resampling=resampling)
    names = list(dict.fromkeys(verdict.user for verdict in verdicts))
    means = {name: float(np.mean([v.share for v in verdicts if v.user == name])) for name in names}
    return PersonalResult(first=first, second=second, groups=groups, users=means)


def top_k(states: ArrayLike, owners: Sequence[str], ks: Sequence[int] = (1, 2, 4, 8, 16)) -> dict[str, Any]:
    """Tell users by their states: how often a draw's own user is among the k whose other draws are nearest.

    Each draw is compared, by cosine, with the mean of every user's draws, its own one left out of them.

    Args:
        states: `[n ...]`, flattened; several draws of each user. Users with a single draw are left out.
        owners: `[n]` whose each one is.
        ks: How many guesses are allowed.

    Returns:
        `users` and `draws` counted, `top` by k, and `chance` by k, what blind guesses would reach.
    """
    x = np.asarray(states, np.float64).reshape(len(owners), -1)
    owner = np.unique(list(owners), return_inverse=True)[1]
    sizes = np.bincount(owner)
    kept = sizes[owner] > 1
    sums = np.stack([np.bincount(owner, column) for column in x.T], axis=1)
    several = np.flatnonzero(sizes > 1)
    ranks = [_rank(x[i], owner[i], sums, sizes, several) for i in np.flatnonzero(kept)]
    allowed = [k for k in ks if k <= len(several)]
    return {
        "users": len(several),
        "draws": len(ranks),
        "top": {str(k): float(np.mean([rank < k for rank in ranks])) for k in allowed},
        "chance": {str(k): k / len(several) for k in allowed},
    }


def _rank(
    draw: NDArray[np.float64], own: int, sums: NDArray[np.float64], sizes: NDArray[np.intp], users: NDArray[np.intp]
) -> int:
    """How many users are nearer to a draw than its own one."""
    means = sums[users] / sizes[users, None]
    place = int(np.flatnonzero(users == own)[0])
    means[place] = (sums[own] - draw) / (sizes[own] - 1)
    near = means @ draw / np.maximum(np.linalg.norm(means, axis=1), 1e-12)
    return int((near > near[place]).sum())


def agreement(shares: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """How often a judge agrees with what users themselves chose; ties of the judge count half.

    Args:
        shares: What the judge gives the image that the user chose, by user.
    """
    each = {name: float(np.mean(values)) for name, values in shares.items() if values}
    pairs = [value for values in shares.values() for value in values]
    return {"pairs": len(pairs), "agreement": float(np.mean(pairs)) if pairs else None, "users": each}
