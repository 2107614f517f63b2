"""Who likes it better: win rates per user, and their mean over users.

    w_u   mean over user u's prompts of the share won
    w     mean of w_u over users           every user counts the same, however much they said
    ci    quantiles of w over resamples of users, and of prompts within each drawn user      two-level bootstrap
    p     sign-flip permutation test of w_u - 1/2

The w_u differ by taste and by the luck of the prompts. Drawing both levels as they are would count that luck twice (95%
intervals then cover 99%), so the w_u are first drawn together to the spread that tastes alone explain, and luck is
raised by sqrt(n / (n - 1)): Davison & Hinkley 1997, section 3.8. Prompts are taken as each user's own. Where many users
judge the same few prompts, these share the prompts' luck, and the win rate over prompts has the honest interval.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffpo.compare.p_values import sign_flip_p_value
from diffpo.compare.stats import USUAL, Estimate, Resampling, constant_interval, measures, per_prompt_means
from diffpo.errors import UserError

_SLOTS = 1 << 20  # drawn prompts held at a time


@dataclass(frozen=True, kw_only=True)
class UserWinRate:
    """Win rate over users."""

    macro: Estimate
    """Mean over users; `n_prompts` counts users and their prompts: one for every (user, prompt)."""
    micro: float
    """Mean over all (user, prompt): users who said more count more."""
    n_users: int
    share_above_half: float
    """Share of users who like the model better; those at one half count half."""
    worst_decile: float
    """A tenth of the users are at or below this win rate."""


def user_win_rate(
    shares: ArrayLike,
    prompt_ids: Sequence[Hashable],
    user_ids: Sequence[Hashable],
    *,
    resampling: Resampling = USUAL,
) -> UserWinRate:
    """Aggregate comparisons per user: `[n]` shares won (1, 1/2 for a tie, 0), of which prompts, judged by whom.

    One user alone is refused: no interval over users can be made of that.
    """
    from scipy.special import ndtr, stdtrit

    shares = np.asarray(shares, dtype=np.float64)
    if not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError("shares must lie between 0 and 1")
    units = list(zip(map(str, user_ids), prompt_ids, strict=True))
    assert len(shares) == len(units)
    values, owners = per_prompt_means(shares, units), [user for user, _ in dict.fromkeys(units)]
    order = sorted(range(len(owners)), key=owners.__getitem__)  # users together; the order of rows must not count
    values, owners = values[order], [owners[i] for i in order]
    means = per_prompt_means(values, owners)
    if len(means) < 2:
        raise UserError("win rates per user need at least two users.")
    sizes = np.unique(owners, return_counts=True)[1]
    drawn = _two_level_means(values, sizes, resampling.resamples, resampling.seed)
    # Of t: few users know little of how much users differ.
    tail = ndtr(stdtrit(len(means) - 1, (1 - resampling.level) / 2))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    if np.ptp(drawn) == 0:
        low, high = constant_interval(float(means[0]), len(means), resampling.level)
    p = sign_flip_p_value(means - 0.5, permutations=resampling.resamples, seed=resampling.seed)
    return UserWinRate(
        macro=Estimate(**{**measures(means, len(shares), (low, high)), "n_prompts": len(values)}, p_value=p),
        micro=float(values.mean()),
        n_users=len(means),
        share_above_half=float((means > 0.5).mean() + (means == 0.5).mean() / 2),
        worst_decile=float(np.quantile(means, 0.1, method="inverted_cdf")),
    )


def _two_level_means(values: NDArray[np.float64], sizes: NDArray[np.intp], resamples: int, seed: int) -> NDArray:
    """Resampled means over users: `[resamples]`; `values` lie user after user.

    A user with a single prompt tells nothing about luck; all that is theirs counts as taste.
    """
    generator = np.random.default_rng([seed, 2])
    users, starts = len(sizes), np.cumsum(sizes) - sizes
    tastes, luck = _levels(values, sizes, starts)
    rows, means = max(1, _SLOTS // (users * int(sizes.max()))), []
    for first in range(0, resamples, rows):
        drawn = generator.integers(0, users, size=min(rows, resamples - first) * users)
        counts = sizes[drawn]
        which = np.repeat(starts[drawn], counts) + (
            generator.random(int(counts.sum())) * np.repeat(counts, counts)
        ).astype(np.intp)
        sums = np.add.reduceat(luck[which], np.cumsum(counts) - counts)
        means.append((tastes[drawn] + sums / counts).reshape(-1, users).mean(axis=1))
    return np.concatenate(means).clip(0, 1)


def _levels(values: NDArray[np.float64], sizes: NDArray[np.intp], starts: NDArray[np.intp]) -> tuple[NDArray, NDArray]:
    """Tastes `[users]`, whose variance is what the means vary beyond luck, and the luck of each value, of mean 0."""
    means = np.add.reduceat(values, starts) / sizes
    several = np.maximum(sizes - 1, 1)
    luck = (values - np.repeat(means, sizes)) * np.repeat(np.sqrt(sizes / several), sizes)
    of_luck = (np.add.reduceat(luck**2, starts) / sizes**2).mean()  # the variance that luck gives to a mean
    observed = means.var()
    shrink = np.sqrt(max(0.0, means.var(ddof=1) - of_luck) / observed) if observed > 0 else 0.0
    return means.mean() + shrink * (means - means.mean()), luck
