"""Bradley-Terry strengths: by hand, and where the truth is known."""

import math

import numpy as np
import pytest

from diffpo.compare.ranking import ELO, bradley_terry, rank_models
from diffpo.compare.stats import Resampling
from diffpo.errors import UserError


def shares(won):
    """(model, other) -> so many prompts won, so many lost."""
    return {pair: {f"p{i:04d}": float(i < wins) for i in range(wins + losses)} for pair, (wins, losses) in won.items()}


def test_two_models_by_hand():
    """30 of 40 won, and half a win for each: odds 30.5 / 10.5."""
    tuned, base = rank_models(shares({("tuned", "base"): (30, 10)}), ["base", "tuned"])
    assert (tuned.model, base.model, base.elo) == ("tuned", "base", 0.0)
    assert tuned.strength == pytest.approx(math.log(30.5 / 10.5))
    assert tuned.elo == pytest.approx(400 * math.log10(30.5 / 10.5))
    assert tuned.elo_low < tuned.elo < tuned.elo_high and (base.elo_low, base.elo_high) == (0.0, 0.0)
    assert tuned.elo_low > 0, "30 of 40 is clear"


def test_ties_are_halves_and_the_first_is_the_anchor():
    even = {("a", "b"): {"p": 0.5, "q": 0.5}, ("b", "c"): {"p": 1.0, "q": 1.0}, ("a", "c"): {"p": 1.0, "q": 1.0}}
    ranks = {rank.model: rank for rank in rank_models(even, ["c", "a", "b"], resampling=Resampling(resamples=50))}
    assert ranks["a"].strength == pytest.approx(ranks["b"].strength)
    assert ranks["c"].elo == 0.0 and ranks["a"].elo > 0


def test_strengths_that_hang_together_are_found_again():
    """Expected shares of known strengths: 1/(1 + exp(-(s_i - s_j)))."""
    truth = np.array([0.0, 0.2, 0.5, 0.9])
    share = 1 / (1 + np.exp(truth[None, :] - truth[:, None]))
    pairs = ~np.eye(4, dtype=bool)
    found = bradley_terry((1e6 * share * pairs)[None])[0]
    assert found - found[0] == pytest.approx(truth, abs=1e-5)


def test_a_chain_is_enough():
    """a and c never met: odds 3 and 3 multiply (with the pseudo-wins 30.5 / 10.5 each)."""
    ranks = rank_models(
        shares({("a", "b"): (30, 10), ("b", "c"): (30, 10)}), ["c", "b", "a"], resampling=Resampling(resamples=50)
    )
    assert [rank.model for rank in ranks] == ["a", "b", "c"]
    assert ranks[0].strength == pytest.approx(2 * math.log(30.5 / 10.5), abs=1e-6)


def test_a_model_that_never_lost_has_a_strength():
    first = rank_models(shares({("a", "b"): (20, 0)}), ["b", "a"])[0]
    assert first.elo == pytest.approx(ELO * math.log(20.5 / 0.5))


def test_intervals_come_from_prompts():
    """Log-odds of 60 of 100: the delta method's half-width 1.96 / sqrt(100 x 0.6 x 0.4), times 400 / ln 10."""
    first = rank_models(shares({("a", "b"): (60, 40)}), ["b", "a"], resampling=Resampling(resamples=4000))[0]
    assert (first.elo_high - first.elo_low) / 2 == pytest.approx(ELO * 1.96 / math.sqrt(24), rel=0.08)
    assert math.isnan(
        rank_models({("a", "b"): {"p": 1.0}}, ["b", "a"], resampling=Resampling(resamples=9))[0].elo_low
    )  # one prompt


def test_thirty_of_thirty_is_not_certainty():
    """Jeffreys' interval of a share of 30 of 30, as log-odds; a third model that never wins does not narrow it."""
    from scipy.stats import beta

    low, high = (ELO * math.log(x / (1 - x)) for x in beta.ppf([0.025, 0.975], 30.5, 0.5))
    first = rank_models(shares({("a", "b"): (30, 0)}), ["b", "a"], resampling=Resampling(resamples=4000))[0]
    assert first.elo_low == pytest.approx(low, rel=0.05) and first.elo_high == pytest.approx(high, rel=0.2)
    three = shares({("a", "b"): (30, 0), ("a", "c"): (30, 0), ("c", "b"): (15, 15)})
    wide = rank_models(three, ["b", "a", "c"])[0]
    assert wide.elo_low > 0 and wide.elo_high - wide.elo_low > 300
    ties = rank_models({("a", "b"): {str(i): 0.5 for i in range(9)}}, ["a", "b"])
    assert all(rank.elo == pytest.approx(0) for rank in ties) and min(rank.elo_low for rank in ties) < -10


def test_intervals_cover():
    """95 % of the intervals hold the truth, log 2 and log 3, where prompts differ in who wins them (ties: halves)."""
    generator, runs, covered = np.random.default_rng(8), 200, np.zeros(2)
    for seed in range(runs):
        strengths = np.array([0, math.log(2), math.log(3)])
        found = {}
        for i, j in ((1, 0), (2, 0), (2, 1)):
            share = 1 / (1 + math.exp(strengths[j] - strengths[i]))
            found["abc"[i], "abc"[j]] = dict(enumerate((generator.random(60) < share).astype(float)))
        ranks = {
            rank.model: rank for rank in rank_models(found, "abc", resampling=Resampling(resamples=200, seed=seed))
        }
        truth = ELO * strengths
        covered += [ranks[model].elo_low <= truth[k] <= ranks[model].elo_high for k, model in enumerate("abc")][1:]
    assert (covered / runs).min() >= 0.9 and (covered / runs).max() <= 0.985


def test_groups_that_never_met():
    with pytest.raises(UserError, match=r"never compared with each other: a, b; c, d"):
        rank_models(shares({("a", "b"): (3, 1), ("c", "d"): (1, 3)}), ["a", "b", "c", "d"])
