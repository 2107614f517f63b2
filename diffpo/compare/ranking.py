"""Many models on one scale: Bradley-Terry strengths, as Elo.

    P(i beats j) = 1 / (1 + exp(-(s_i - s_j)))            Bradley & Terry 1952; a tie is half a win for each
    Elo_i = 400 / ln 10 * (s_i - s_anchor)                400 points: ten to one

Fitted by minorisation-maximisation (Hunter 2004): with w = exp(s), w_i <- W_i / sum over j of n_ij / (w_i + w_j). Half
a win for each side is added to every pair of models that was compared, so that a model that never lost has a finite
strength. Every prompt has the weight one per pair of models, however many images.

Intervals come from refitting with random weights: exponential ones of the prompts (Bayesian bootstrap, Rubin 1981), and
gamma ones of the half wins. For two models without ties that is the interval of Jeffreys, which also knows that 30 wins
of 30 are not certainty; resampled prompts alone do not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffpo.compare.stats import Resampling
from diffpo.errors import UserError

ELO = 400 / math.log(10)
PSEUDO_WINS = 0.5
FEWER = Resampling(resamples=1000)
"""Each resample is a fit."""
_ITERATIONS = 10_000
_CLOSE = 1e-9  # of a log-strength

Shares = Mapping[tuple[str, str], Mapping[str, float]]
"""(model, other) -> prompt -> share of its comparisons that the model won; each pair of models in one order."""


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One model's place."""

    model: str
    strength: float
    """Log-odds against the anchor."""
    elo: float
    elo_low: float
    """The anchor's own interval is 0 to 0: the others' are of the distance to it."""
    elo_high: float


def rank_models(shares: Shares, models: Sequence[str], *, resampling: Resampling = FEWER) -> list[Rank]:
    """Rank models, strongest first; the first of `models` is the anchor at Elo 0. Pairs may be missing."""
    from scipy.sparse.csgraph import connected_components

    won, compared = _arrays(shares, models)
    pairs, prompts = compared.any(axis=0), len(won)
    number, groups = connected_components(pairs, directed=False)
    if number > 1:  # not compared, directly or through others: they have no common scale
        listed = "; ".join(", ".join(np.array(models)[groups == group]) for group in range(number))
        raise UserError(f"these groups of models were never compared with each other: {listed}. Rank each by itself.")
    generator, shape = np.random.default_rng([resampling.seed, 3]), (resampling.resamples, *won.shape[1:])
    weights = generator.exponential(size=(resampling.resamples, prompts))
    fits = []
    for rows, pseudo in (
        (np.ones((1, prompts)), np.array(PSEUDO_WINS)),
        (weights, generator.gamma(PSEUDO_WINS, size=shape)),
    ):
        wins = (rows @ won.reshape(prompts, -1)).reshape(-1, *won.shape[1:])
        strengths = bradley_terry(wins + pseudo * pairs)
        fits.append(strengths - strengths[:, :1])
    tail = (1 - resampling.level) / 2
    ends = np.quantile(fits[1], [tail, 1 - tail], axis=0) if prompts > 1 else np.full((2, len(models)), math.nan)
    ranks = [
        Rank(model=model, strength=strength, elo=ELO * strength, elo_low=ELO * low, elo_high=ELO * high)
        for model, strength, low, high in zip(models, fits[0][0].tolist(), *ends.tolist(), strict=True)
    ]
    return sorted(ranks, key=lambda rank: -rank.strength)


def bradley_terry(wins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit strengths, several tables at a time: `[k m]`, log-strengths of mean 0.

    `wins`, `[k m m]`, says how often the model of the row beat that of the column, ties as halves; 0 on the diagonal.
    """
    counts, total, strengths = wins + wins.transpose(0, 2, 1), wins.sum(axis=2), np.zeros(wins.shape[:2])
    for _ in range(_ITERATIONS):
        w = np.exp(strengths)
        updated = np.log(total / (counts / (w[:, :, None] + w[:, None, :])).sum(axis=2))
        updated -= updated.mean(axis=1, keepdims=True)
        change, strengths = np.abs(updated - strengths).max(), updated
        if change < _CLOSE:
            break
    return strengths


def _arrays(shares: Shares, models: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares won, and whether compared: two `[prompts, m, m]`."""
    place = {model: i for i, model in enumerate(models)}
    index = {prompt: i for i, prompt in enumerate(sorted({p for values in shares.values() for p in values}))}
    won, compared = (np.zeros((len(index), len(models), len(models))) for _ in range(2))
    for (one, other), values in shares.items():
        i, j = place[one], place[other]
        for prompt, share in values.items():
            won[index[prompt], i, j], won[index[prompt], j, i] = share, 1 - share
            compared[index[prompt], i, j] = compared[index[prompt], j, i] = 1
    return won, compared
