"""Corrections that may go missing without a trace: each of these was once taken out, and no test noticed."""

import dataclasses
import math

import numpy as np
import pytest
from judged import compare_two, write_folder

from diffpo.compare.compare import Judging, compare
from diffpo.compare.p_values import benjamini_hochberg, holm, sign_flip_p_value, sign_test
from diffpo.compare.stats import Resampling, bootstrap_interval, win_rate

QUICK = Resampling(resamples=200)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_images_of_one_prompt_are_not_independent(scale):
    """Eight prompts of three images alike, six won: p = 2 (1 + 8 + 28) / 256 = 0.289, not that of 18 of 24: 0.023.

    Passes and failures, which McNemar's test would count, and scores, which the sign test would.
    """
    a = np.repeat([1.0] * 6 + [0.0] * 2, 3) * scale
    rate = win_rate(a, scale - a, np.repeat(np.arange(8), 3).tolist())
    assert (rate.test, rate.p_value) == ("sign-flip", pytest.approx(74 / 256))
    assert sign_test(rate.wins, rate.losses) == pytest.approx(0.0227, abs=1e-4)


def test_few_prompts_have_wider_intervals():
    """t of 9 degrees times s / sqrt(10), 2.262; without room for few values 1.96 sqrt(9 / 10) = 1.859."""
    values = np.linspace(-1, 1, 10)
    low, high = bootstrap_interval(values, Resampling(resamples=100_000))
    assert (high - low) / 2 == pytest.approx(2.262 * values.std(ddof=1) / math.sqrt(10), rel=0.06)


def test_the_room_for_few_prompts_by_hand():
    """Quantiles Phi(+-sqrt(n / (n - 1)) t) of the same resamples, t of n - 1 degrees: 0.0057 for 8 values."""
    from scipy.stats import bootstrap, norm, t

    values = np.random.default_rng(2).normal(size=8)
    resampled = bootstrap((values,), np.mean, n_resamples=999, method="percentile", rng=np.random.default_rng([4, 0]))
    tail = norm.cdf(math.sqrt(8 / 7) * t.ppf(0.025, 7))
    assert tail == pytest.approx(0.0057, abs=1e-4)
    expected = np.quantile(resampled.bootstrap_distribution, [tail, 1 - tail])
    assert bootstrap_interval(values, Resampling(resamples=999, seed=4)) == pytest.approx(tuple(expected), abs=1e-12)


def test_all_prompts_won_are_so_many_prompts_not_images():
    """Five prompts of three images: 0.1^(1/5) for a level of 80 %, not 0.1^(1/15)."""
    rate = win_rate([1.0] * 15, [0.0] * 15, [i // 3 for i in range(15)], resampling=Resampling(level=0.8))
    assert (rate.ci_low, rate.ci_high) == (pytest.approx(0.1**0.2), 1.0)


def test_the_detectable_effect_is_of_prompts():
    """Means of prompts 1, 1, 1, 0, 0, 0: s = sqrt(0.3), t of 5 degrees 2.5706 + 0.9195."""
    won = [1.0] * 9 + [0.0] * 9
    rate = win_rate(won, [0.5] * 18, [i // 3 for i in range(18)])
    assert rate.detectable == pytest.approx(3.4901 * math.sqrt(0.3 / 6), abs=1e-4)


def test_a_win_rate_turned_round():
    a, b = np.random.default_rng(0).normal(size=(2, 30))
    rate = win_rate(a + 0.3, b, list(range(30)))
    back = rate.flipped()
    assert (back.estimate, back.ci_low, back.ci_high) == (1 - rate.estimate, 1 - rate.ci_high, 1 - rate.ci_low)
    assert (back.wins, back.losses) == (rate.losses, rate.wins) and back.flipped().wins == rate.wins


@pytest.mark.parametrize(
    ("low", "estimate", "high", "standing"),
    [(0.51, 0.6, 0.7, "better"), (0.3, 0.4, 0.49, "worse"), (0.49, 0.6, 0.7, "unclear"), (0.3, 0.4, 0.51, "unclear")],
)
def test_the_interval_decides_not_the_estimate(low, estimate, high, standing):
    rate = dataclasses.replace(win_rate([1.0, 0.0], [0.0, 0.0], [1, 2]), estimate=estimate, ci_low=low, ci_high=high)
    assert rate.standing == standing


def test_the_level_reaches_the_interval():
    values = np.random.default_rng(0).normal(size=400)
    for interval in ("percentile", "bca"):
        low, high = bootstrap_interval(values, Resampling(level=0.5, interval=interval))
        assert (high - low) / 2 == pytest.approx(0.6745 * values.std() / 20, rel=0.05)


def test_bca_by_hand():
    """Phi(z0 + (z0 + z) / (1 - a (z0 + z))), with a from the third moment: Efron 1987."""
    from scipy.special import ndtr, ndtri
    from scipy.stats import bootstrap

    values = np.random.default_rng(5).exponential(size=15)
    rng = np.random.default_rng([0, 0])
    means = bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=rng).bootstrap_distribution
    deviation = values - values.mean()
    a = (deviation**3).sum() / (6 * (deviation**2).sum() ** 1.5)
    z0 = ndtri((means < values.mean()).mean())
    z = z0 + ndtri([0.025, 0.975])
    expected = np.quantile(means, ndtr(z0 + z / (1 - a * z)))
    found = bootstrap_interval(values, Resampling(interval="bca", resamples=9999))
    assert found == pytest.approx(tuple(expected), abs=1e-9)
    doubled = np.quantile(means, ndtr(z0 + z / (1 - 2 * a * z)))
    assert abs(doubled - expected).max() > 0.01, "or this test would not see another acceleration"


@pytest.mark.parametrize("permutations", [99, 999])
def test_a_permutation_test_never_says_zero(permutations):
    """No random pattern is as extreme as the observed one, which is one of all: 1 / (1 + permutations)."""
    assert sign_flip_p_value(np.arange(1.0, 61.0), permutations=permutations) == 1 / (1 + permutations)


def test_all_permutations_are_counted():
    """Of values whose sum is 0 every pattern is as extreme; 300,000 patterns of 20 signs come in two blocks."""
    assert sign_flip_p_value(np.array([1.0, -1.0] * 10), permutations=300_000) == 1.0


def test_permutations_are_two_sided():
    values = np.random.default_rng(3).normal(0.3, 1, size=40)
    up, down = sign_flip_p_value(values), sign_flip_p_value(-values)
    z = values.sum() / math.sqrt((values**2).sum())
    assert up == down == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=0.02)


@pytest.fixture
def three(tmp_path):
    """Three models, sixteen prompts in four categories, by two scorers; no two p-values are alike."""
    generator = np.random.default_rng(1)
    folders = []
    for i, label in enumerate(("base", "mid", "top")):
        scores = {
            name: {f"p{k}": [float(x) for x in generator.normal(i * (0.4 + j) * (k % 4), 1, 2)] for k in range(16)}
            for j, name in enumerate(("first", "second"))
        }
        folders.append(write_folder(tmp_path / label, label, scores))
    return folders, Judging(resampling=QUICK, categories={f"p{k}": f"c{k % 4}" for k in range(16)})


def test_categories_are_adjusted_as_an_exploration(three):
    folders, judging = three
    for result in compare_two(folders[:2], judging=judging).results:
        raw = [stratum.win_rate.p_value for stratum in result.strata]
        assert len(raw) == 4
        assert [stratum.adjusted_p for stratum in result.strata] == benjamini_hochberg(raw) != raw


def test_pairs_of_a_ranking_are_adjusted_as_an_exploration(three):
    folders, judging = three
    for ranking in compare(folders, judging=judging).rankings:
        raw = [cell.win_rate.p_value for cell in ranking.cells]
        assert [cell.adjusted_p for cell in ranking.cells] == benjamini_hochberg(raw) != raw


def test_the_claim_is_adjusted_over_scorers_and_models(three):
    folders, judging = three
    results = [result for one in compare(folders, judging=judging).comparisons for result in one.results]
    raw = [result.win_rate.p_value for result in results]
    assert len(raw) == 4 and [result.adjusted_p for result in results] == holm(raw) != raw


def test_all_that_judging_says_is_used(three):
    """Level, resamples, interval and seed reach every interval: over prompts, categories and pairs of models."""
    folders, _ = three
    usual = {"resampling": QUICK, "categories": {f"p{k}": f"c{k % 4}" for k in range(16)}}
    changes = [
        Resampling(resamples=200, level=0.6),
        Resampling(resamples=300),
        Resampling(resamples=200, interval="bca"),
        Resampling(resamples=200, seed=9),
    ]

    def ends(judging):
        found = compare(folders, scorers=["first"], judging=judging)
        result = found.comparisons[0].results[0]
        estimates = [
            result.win_rate,
            result.difference,
            result.strata[3].difference,
            found.rankings[0].cells[1].win_rate,
        ]
        sampled = [(one.p_value, one.p_value) for one in estimates[:2]]  # by chance: more prompts than are all tried
        return (
            [(one.ci_low, one.ci_high) for one in estimates]
            + sampled
            + [(rank.elo_low, rank.elo_high) for rank in found.rankings[0].ranks if rank.model != "base"]
        )

    before = ends(Judging(**usual))
    for resampling in changes:
        after = ends(Judging(**usual | {"resampling": resampling}))
        same = [a == b for a, b in zip(before, after, strict=True)]
        drawn_anew = resampling.seed != 0 or resampling.resamples != 200
        assert not any(same[:4]) and not (drawn_anew and any(same[4:6])), resampling
        assert resampling.interval == "bca" or not any(same[6:]), resampling  # the ranking's intervals are quantiles
    assert (
        compare(folders, judging=Judging(resampling=Resampling(resamples=200, level=0.6))).comparisons[0].level == 0.6
    )
