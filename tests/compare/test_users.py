"""Win rates over users, by hand and by simulation."""

import numpy as np
import pytest

from diffpo.compare.p_values import minimum_detectable_effect
from diffpo.compare.stats import Resampling
from diffpo.compare.users import _levels, user_win_rate
from diffpo.errors import UserError


def test_every_user_counts_the_same():
    """Ann wins 3 of 3 prompts, Bob loses his one (twice): macro 1/2, micro 3/4."""
    found = user_win_rate([1, 1, 1, 0, 0], ["p", "q", "r", "p", "p"], ["ann", "ann", "ann", "bob", "bob"])
    assert (found.macro.estimate, found.micro) == (0.5, 0.75)
    assert (found.n_users, found.macro.n_prompts, found.macro.n_pairs) == (2, 4, 5)
    # Drawn users: both Ann 1, one each 1/2, both Bob 0; their prompts do not vary.
    assert (found.macro.ci_low, found.macro.ci_high) == (0.0, 1.0)
    assert found.macro.p_value == 1.0 and found.share_above_half == 0.5 and found.worst_decile == 0.0


def test_users_at_one_half_count_half():
    found = user_win_rate([0.5, 1, 1], ["p", "p", "p"], ["ann", "bob", "cyd"])
    assert found.share_above_half == pytest.approx(2.5 / 3)
    assert found.macro.estimate == pytest.approx(2.5 / 3)


def test_the_order_of_rows_and_the_names_of_users_do_not_matter():
    generator = np.random.default_rng(0)
    shares, prompts, users = generator.integers(0, 2, 60), np.arange(60) % 7, np.repeat(np.arange(12), 5)
    mixed = generator.permutation(60)
    once = user_win_rate(shares, prompts.tolist(), users.tolist(), resampling=Resampling(resamples=200))
    again = user_win_rate(
        shares[mixed], prompts[mixed].tolist(), users[mixed].tolist(), resampling=Resampling(resamples=200)
    )
    assert once.macro.estimate == pytest.approx(again.macro.estimate)
    assert once.worst_decile == again.worst_decile and once.macro.p_value == pytest.approx(again.macro.p_value)


def test_the_two_levels_add_up_to_what_users_differ_by():
    """Between-user variance t, within s over k prompts: means of users vary by t + s / k, and so do the resamples."""
    generator, users, k = np.random.default_rng(1), 200, 20
    taste = generator.uniform(-0.2, 0.2, size=(users, 1))
    values = 0.5 + taste + generator.uniform(-0.3, 0.3, size=(users, k))
    found = user_win_rate(values.ravel(), list(range(k)) * users, np.repeat(np.arange(users), k).tolist())
    expected = values.mean(1).std(ddof=1) / np.sqrt(users)
    assert (found.macro.ci_high - found.macro.ci_low) / (2 * 1.96) == pytest.approx(expected, rel=0.04)
    assert expected == pytest.approx(np.sqrt((0.4**2 / 12 + 0.6**2 / 12 / k) / users), rel=0.1)


def test_levels_by_hand():
    """Ann 1, 0 and Bob 1, 1, 0, 0: both 1/2. Ann's luck is +-1/2 sqrt(2), Bob's +-1/2 sqrt(4/3); tastes are alike."""
    tastes, luck = _levels(np.array([1.0, 0, 1, 1, 0, 0]), np.array([2, 4]), np.array([0, 2]))
    assert tastes.tolist() == [0.5, 0.5]
    assert luck == pytest.approx(
        np.array([0.5, -0.5, 0, 0, 0, 0]) * 2**0.5 + np.array([0, 0, 0.5, 0.5, -0.5, -0.5]) * (4 / 3) ** 0.5
    )


def test_users_of_one_prompt_are_all_taste():
    """Without luck the means (0, 1/2, 1) keep their spread: variance 1/4 is 1/6 times 3/2."""
    tastes, luck = _levels(np.array([0.0, 0.5, 1.0]), np.ones(3, dtype=int), np.arange(3))
    assert luck.tolist() == [0, 0, 0] and tastes.var() == pytest.approx(0.25)


def test_users_who_agree_are_no_certainty():
    """20 users, all for the model: at least 0.025^(1/20) = 83 % of all users are."""
    found = user_win_rate([1.0] * 40, [0, 1] * 20, np.repeat(np.arange(20), 2).tolist())
    assert (found.macro.ci_low, found.macro.ci_high) == pytest.approx((0.025**0.05, 1.0))


def test_one_user_is_no_population():
    with pytest.raises(UserError, match="at least two users"):
        user_win_rate([1.0, 0.0], ["p", "q"], ["ann", "ann"])


@pytest.mark.parametrize("share", [float("nan"), 1.5, -0.5])
def test_what_is_no_share(share):
    with pytest.raises(ValueError, match="between 0 and 1"):
        user_win_rate([1.0, share], ["p", "p"], ["ann", "bob"])


def ten_users(**resampling):
    """Ten users of one prompt each, evenly spread."""
    shares = np.linspace(0.1, 0.9, 10)
    return shares, user_win_rate(shares, ["p"] * 10, list(range(10)), resampling=Resampling(**resampling)).macro


@pytest.mark.parametrize(("level", "t"), [(0.95, 2.262), (0.5, 0.703)])
def test_few_users_have_wide_intervals(level, t):
    """t of 9 degrees times s / sqrt(10); the normal quantiles are 1.960 and 0.674."""
    shares, macro = ten_users(level=level, resamples=50_000)
    assert (macro.ci_high - macro.ci_low) / 2 == pytest.approx(t * shares.std(ddof=1) / 10**0.5, rel=0.04)


def test_users_are_the_unit_of_what_can_be_detected():
    """Four users of two prompts: means 1, 1/2, 1/2, 0; two prompts per user make no eight observations."""
    shares, users = [1, 1, 1, 0, 0, 1, 0, 0] * 2, np.repeat(np.arange(8), 2).tolist()
    found = user_win_rate(shares, [0, 1] * 8, users, resampling=Resampling(resamples=50)).macro
    assert found.detectable == minimum_detectable_effect([1, 0.5, 0.5, 0] * 2)


def test_seed_and_resamples_are_used():
    shares = np.random.default_rng(6).uniform(0.05, 1, size=40)
    of = {"prompt_ids": [0, 1] * 20, "user_ids": np.repeat(np.arange(20), 2).tolist()}
    found = {
        key: user_win_rate(shares, **of, resampling=Resampling(resamples=key[0], seed=key[1])).macro
        for key in ((400, 0), (400, 1), (500, 0))
    }
    assert len({macro.ci_low for macro in found.values()}) == len({macro.p_value for macro in found.values()}) == 3
