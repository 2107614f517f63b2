"""Statistics by hand, against the closed forms, and by simulation."""

import itertools
import math

import numpy as np
import pytest

from diffpo.compare.p_values import holm, sign_flip_p_value
from diffpo.compare.stats import (
    Resampling,
    bootstrap_interval,
    mean_difference,
    per_prompt_means,
    win_rate,
)


def test_win_rate_by_hand():
    """Prompt a: win, tie, loss, (1 + 1/2 + 0) / 3 = 1/2. Prompt b: one win, 1. Mean over prompts 3/4, not 2.5/4."""
    rate = win_rate([3.0, 1.0, 0.0, 5.0], [1.0, 1.0, 2.0, 4.0], ["a", "a", "a", "b"])
    assert rate.estimate == 0.75
    assert (rate.wins, rate.ties, rate.losses) == (2, 1, 1)
    assert (rate.n_prompts, rate.n_pairs) == (2, 4)
    # Resamples of two prompts: (a, a) 1/2, (a, b) twice 3/4, (b, b) 1, a quarter, a half and a quarter of the time.
    assert (rate.ci_low, rate.ci_high) == (0.5, 1.0)
    # Deviations 0 and 1/2: both signs of the second are as far from 0.
    assert rate.p_value == 1.0


def test_a_difference_within_the_tolerance_is_a_tie():
    rate = win_rate([1.0, 1.0, 1.0], [1.05, 0.8, 1.2], ["a", "b", "c"], tie_tolerance=0.1)
    assert (rate.wins, rate.ties, rate.losses) == (1, 1, 1)


def test_mean_difference_by_hand():
    """Prompt a: (2 + 0) / 2 = 1; prompt b: 4. Mean 2.5; signs give +-2.5 and +-1.5, of four two as far: p = 1/2."""
    difference = mean_difference([3.0, 1.0, 5.0], [1.0, 1.0, 1.0], ["a", "a", "b"])
    assert difference.estimate == 2.5
    assert (difference.ci_low, difference.ci_high) == (1.0, 4.0)
    assert difference.p_value == 0.5


def test_swapping_the_models_mirrors_everything():
    generator = np.random.default_rng(0)
    a, b, prompts = generator.normal(size=60), generator.normal(size=60), np.repeat(np.arange(30), 2)
    one, other = win_rate(a, b, prompts), win_rate(b, a, prompts)
    assert one.estimate == pytest.approx(1 - other.estimate)
    assert (one.ci_low, one.ci_high) == pytest.approx((1 - other.ci_high, 1 - other.ci_low), abs=0.01)
    assert one.p_value == pytest.approx(other.p_value)
    assert (one.wins, one.losses) == (other.losses, other.wins)


@pytest.mark.parametrize(("sign", "low", "high"), [(1, 0.025**0.1, 1.0), (-1, 0.0, 1 - 0.025**0.1)])
def test_ten_of_ten_is_not_certainty(sign, low, high):
    """Every resample says 100 %; the exact binomial interval knows better: 0.025^(1/10) = 0.69."""
    rate = win_rate([sign] * 10, [0.0] * 10, range(10))
    assert (rate.ci_low, rate.ci_high) == pytest.approx((low, high))
    assert rate.p_value == 2 / 2**10


def test_all_ties_are_even_but_not_for_certain():
    """Up to 1 - 0.025^(1/5) = 52 % of the prompts may not tie, and all of those be won, or lost."""
    rate = win_rate([1.0] * 5, [1.0] * 5, range(5))
    assert (rate.estimate, rate.p_value, rate.ties) == (0.5, 1.0, 5)
    assert (rate.ci_low, rate.ci_high) == pytest.approx((0.239, 0.761), abs=1e-3)
    assert win_rate([1.0] * 500, [1.0] * 500, range(500)).ci_low == pytest.approx(0.4963, abs=1e-4)


def test_one_prompt_has_no_spread():
    assert all(math.isnan(bound) for bound in bootstrap_interval(np.array([0.3])))
    assert win_rate([1.0], [0.0], ["a"]).ci_low == pytest.approx(0.025)


def test_per_prompt_means_keep_the_order_of_appearance():
    assert per_prompt_means([1.0, 2.0, 3.0, 5.0], ["z", "a", "z", "a"]).tolist() == [2.0, 3.5]


def test_the_exact_permutation_test_counts_all_patterns():
    values = np.array([0.3, -0.1, 0.4, 0.2, 0.05])
    sums = [abs(np.dot(signs, values)) for signs in itertools.product((-1, 1), repeat=5)]
    expected = np.mean([total >= abs(values.sum()) - 1e-12 for total in sums])
    assert sign_flip_p_value(values) == expected


def test_the_permutation_test_agrees_with_scipy():
    from scipy.stats import permutation_test

    def distance(values, axis):
        return np.abs(values.sum(axis))

    options = {"permutation_type": "samples", "alternative": "greater", "vectorized": True}
    for n, tolerance in ((9, 1e-12), (40, 0.015)):
        values = np.random.default_rng(n).normal(0.2, 1, size=n)
        reference = permutation_test((values,), distance, n_resamples=9999, rng=np.random.default_rng(0), **options)
        assert sign_flip_p_value(values) == pytest.approx(reference.pvalue, abs=tolerance)


def test_random_patterns_agree_with_all_of_them():
    values = np.random.default_rng(1).normal(0.3, 1, size=14)
    exact = sign_flip_p_value(values)
    doubled = sign_flip_p_value(np.concatenate([values, np.zeros(6)]))  # zeros change no sum, but force sampling
    assert doubled == pytest.approx(exact, abs=0.015)


def test_the_bootstrap_is_seeded_and_agrees_with_theory():
    values = np.random.default_rng(2).normal(size=400)
    low, high = bootstrap_interval(values, Resampling(seed=3))
    assert (
        (low, high) == bootstrap_interval(values, Resampling(seed=3)) != bootstrap_interval(values, Resampling(seed=4))
    )
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


def test_bca_agrees_with_scipy():
    from scipy.stats import bootstrap

    values = np.random.default_rng(5).exponential(size=40)
    reference = bootstrap((values,), np.mean, method="BCa", n_resamples=20_000, rng=np.random.default_rng(0))
    low, high = bootstrap_interval(values, Resampling(interval="bca", resamples=20_000))
    assert (low, high) == pytest.approx(tuple(reference.confidence_interval), abs=0.02)
    assert low > bootstrap_interval(values)[0]  # skewed to the right: both bounds move up


def test_the_interval_covers_where_counting_images_does_not():
    """100 prompts x 4 seeds, half of the variance between prompts: 95 % of the intervals hold the truth, 0.5."""
    generator, simulations, covered, naive = np.random.default_rng(6), 300, 0, 0
    prompts = np.repeat(np.arange(100), 4)
    for _ in range(simulations):
        difference = np.repeat(generator.normal(size=100), 4) + generator.normal(size=400)
        rate = win_rate(difference, np.zeros(400), prompts, resampling=Resampling(resamples=500))
        covered += rate.ci_low <= 0.5 <= rate.ci_high
        share = (difference > 0).mean()
        naive += abs(share - 0.5) <= 1.96 * math.sqrt(share * (1 - share) / 400)
    assert 0.91 <= covered / simulations <= 0.98
    assert naive / simulations < 0.88


def test_the_permutation_test_keeps_its_level():
    generator = np.random.default_rng(7)
    p = [sign_flip_p_value(generator.normal(size=40), permutations=400, seed=i) for i in range(400)]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.03)


@pytest.mark.parametrize(
    ("a", "b", "prompts"),
    [([1.0], [1.0, 2.0], ["a"]), ([1.0, 2.0], [1.0, 2.0], ["a"]), ([], [], []), ([float("nan")], [1.0], ["a"])],
)
def test_what_cannot_be_compared(a, b, prompts):
    with pytest.raises(ValueError, match=r"equally many|finite"):
        win_rate(a, b, prompts)


def test_holm_by_hand():
    """m = 3: 3 x 0.01 = 0.03; 2 x 0.03 = 0.06; 1 x 0.04 = 0.04, but not below the one before it. At most 1."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []
