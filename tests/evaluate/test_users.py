"""Win rates over users, by hand and by simulation."""

import numpy as np
import pytest

from diffpo.errors import UserError
from diffpo.evaluate.users import user_win_rate


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
    once = user_win_rate(shares, prompts.tolist(), users.tolist(), resamples=200)
    again = user_win_rate(shares[mixed], prompts[mixed].tolist(), users[mixed].tolist(), resamples=200)
    assert once.macro.estimate == pytest.approx(again.macro.estimate)
    assert once.worst_decile == again.worst_decile and once.macro.p_value == pytest.approx(again.macro.p_value)


def test_the_two_levels_add_up():
    """Between-user variance t, within s over k prompts: the spread of resamples is (t + 2 s / k) / users, up to 1/k."""
    generator, users, k = np.random.default_rng(1), 200, 20
    taste = generator.normal(0, 0.1, size=(users, 1))
    values = 0.5 + taste + generator.normal(0, 0.3, size=(users, k))
    found = user_win_rate(values.ravel(), list(range(k)) * users, np.repeat(np.arange(users), k).tolist())
    expected = np.sqrt((values.mean(1).var() + (values.var(1) / k).mean()) / users)
    assert (found.macro.ci_high - found.macro.ci_low) / (2 * 1.96) == pytest.approx(expected, rel=0.05)


def test_one_user_is_no_population():
    with pytest.raises(UserError, match="at least two users"):
        user_win_rate([1.0, 0.0], ["p", "q"], ["ann", "ann"])
