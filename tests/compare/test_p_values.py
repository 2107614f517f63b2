"""Exact tests of counts, corrections, and what could have been found: by hand."""

import math

import numpy as np
import pytest

from diffpo.compare.p_values import benjamini_hochberg, minimum_detectable_effect, sign_flip_p_value, sign_test
from diffpo.compare.stats import Resampling, mean_difference, win_rate


def test_the_sign_test_by_hand():
    """10 comparisons: (1 + 10 + 45) of 1024 patterns have at most 2 losses, as many at most 2 wins."""
    assert sign_test(8, 2) == pytest.approx(2 * 56 / 1024)
    assert sign_test(2, 8) == sign_test(8, 2)
    assert (sign_test(5, 5), sign_test(0, 0)) == (1.0, 1.0)


def test_mcnemar_by_hand():
    """a alone passes 5 prompts, b alone 1: 2 (1 + 6) / 64 = 0.219; the 14 on which they agree change nothing."""
    a = [1.0] * 10 + [0.0] * 4 + [1.0] * 5 + [0.0]
    b = [1.0] * 10 + [0.0] * 4 + [0.0] * 5 + [1.0]
    rate, back = win_rate(a, b, range(20)), win_rate(b, a, range(20))
    assert (rate.test, rate.wins, rate.ties, rate.losses) == ("mcnemar", 5, 14, 1)
    assert rate.p_value == back.p_value == pytest.approx(14 / 64)
    assert win_rate(a, a, range(20)).p_value == 1.0
    for other in (2.0, 0.5):
        assert win_rate([*a, other], [*b, other], range(21)).test == "binomial", "no longer passes and failures"


def test_benjamini_hochberg_by_hand():
    """m = 4: 4 x 0.01 / 1 = 0.04; 4 x 0.02 / 2 = 0.04; 4 x 0.03 / 3 = 0.04; 0.5; never above what comes after."""
    assert benjamini_hochberg([0.03, 0.5, 0.01, 0.02]) == pytest.approx([0.04, 0.5, 0.04, 0.04])
    assert benjamini_hochberg([]) == []


def test_one_comparison_per_prompt_is_counted_exactly():
    """16 prompts, 12 won: the sampled test of the same signs comes close. Ties say nothing; a second seed ends it."""
    a, zeros = np.array([1.0] * 12 + [-1.0] * 4), np.zeros(16)
    rate = win_rate(a, zeros, range(16))
    assert (rate.test, rate.p_value) == ("binomial", sign_test(12, 4))
    assert sign_flip_p_value(a, permutations=20_000) == pytest.approx(rate.p_value, abs=0.01)
    assert win_rate(a, zeros, [0, 0, *range(14)]).test == "sign-flip"
    tied = win_rate([*a[:-1], 0.0], zeros, range(16))
    assert (tied.test, tied.p_value) == ("binomial", sign_test(12, 3))
    assert sign_flip_p_value(np.array([*a[:-1], 0.0]), permutations=20_000) == pytest.approx(tied.p_value, abs=0.01)


@pytest.mark.parametrize(("n", "points"), [(500, 6.3), (1632, 3.5), (3200, 2.5)])
def test_the_detectable_effect_of_the_usual_prompt_sets(n, points):
    """(1.960 + 0.842) x 0.5 / sqrt(n)."""
    even = np.arange(n) % 2
    assert 100 * minimum_detectable_effect(even) == pytest.approx(points, abs=0.05)
    rate = win_rate(even * 2.0 - 1, np.zeros(n), range(n), resampling=Resampling(resamples=10))
    assert rate.detectable == minimum_detectable_effect(even)


def test_the_detectable_effect_by_hand():
    """Differences 1 and 3, three times: variance 1.2; t of 5 degrees 2.5706 + 0.9195, times sqrt(1.2 / 6)."""
    found = mean_difference([1.0, 3.0] * 3, [0.0] * 6, range(6))
    assert found.detectable == pytest.approx(3.4901 * math.sqrt(0.2), abs=1e-4)


def test_five_prompts_find_nothing():
    """All five won: p = 2 / 32. With six it is 2 / 64."""
    for n, finds in ((5, False), (6, True)):
        values = [1.0 + i / 10 for i in range(n)]
        found = mean_difference(values, [0.0] * n, range(n))
        assert found.p_value == 2 / 2**n and (found.p_value <= 0.05) == finds
        assert math.isnan(found.detectable) != finds


def test_values_that_do_not_vary_tell_no_spread():
    assert math.isnan(minimum_detectable_effect([1.0]))
    assert math.isnan(win_rate([1.0] * 9, [0.0] * 9, range(9)).detectable)


def test_the_power_is_what_was_promised():
    """Effects of that size are found in 80 % of 1,000 repetitions."""
    generator, n = np.random.default_rng(0), 100
    effect = (1.959964 + 0.841621) / math.sqrt(n)
    found = generator.normal(effect, 1, size=(1000, n))
    z = found.mean(1) / found.std(1, ddof=1) * math.sqrt(n)
    assert (np.abs(z) > 1.98).mean() == pytest.approx(0.8, abs=0.04)
    assert np.mean([minimum_detectable_effect(row) for row in found]) == pytest.approx(effect, rel=0.02)
