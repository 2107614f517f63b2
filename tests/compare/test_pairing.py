"""Modes of pairing, by hand."""

import math

import pytest

from diffpo.compare.pairing import MODES, pair_values
from diffpo.compare.stats import win_rate
from diffpo.errors import UserError

MODEL = {"b": {0: 5.0}, "a": {0: 1.0, 1: 4.0, 2: 7.0}}
BASELINE = {"a": {0: 2.0, 1: 3.0, 2: 9.0}, "b": {0: 6.0}}


@pytest.mark.parametrize(
    ("mode", "model", "baseline", "prompts"),
    [
        ("same-seed", [1, 4, 7, 5], [2, 3, 9, 6], "aaab"),
        ("all-pairs", [1, 1, 1, 4, 4, 4, 7, 7, 7, 5], [2, 3, 9] * 3 + [6], "aaaaaaaaab"),
        ("median-image", [4, 5], [3, 6], "ab"),
        ("best-of-n", [7, 5], [9, 6], "ab"),
        ("mean-over-seeds", [4, 5], [14 / 3, 6], "ab"),
    ],
)
def test_modes_by_hand(mode, model, baseline, prompts):
    paired = pair_values(MODEL, BASELINE, mode)
    assert paired.model.tolist() == pytest.approx(model)
    assert paired.baseline.tolist() == pytest.approx(baseline)
    assert "".join(paired.prompts) == prompts


def test_all_pairs_counts_every_one():
    """Prompt a: of nine pairs 1 beats none, 4 beats 2 and 3, 7 beats 2 and 3: 4/9. Prompt b: 0. Mean 2/9."""
    paired = pair_values(MODEL, BASELINE, "all-pairs")
    rate = win_rate(paired.model, paired.baseline, paired.prompts)
    assert rate.estimate == pytest.approx(2 / 9)
    assert (rate.wins, rate.losses, rate.n_pairs, rate.n_prompts) == (4, 6, 10, 2)


def test_another_scorer_may_choose_the_image():
    """It likes the model's seed 0 and the baseline's seed 1 best; seeds 1 and 0 are its medians."""
    chosen_by = {"a": {0: 9.0, 1: 5.0, 2: 1.0}, "b": {0: 0.0}}, {"a": {0: 2.0, 1: 9.0, 2: 1.0}, "b": {0: 0.0}}
    best = pair_values(MODEL, BASELINE, "best-of-n", chosen_by=chosen_by)
    assert (best.model.tolist(), best.baseline.tolist()) == ([1, 5], [3, 6])
    median = pair_values(MODEL, BASELINE, "median-image", chosen_by=chosen_by)
    assert (median.model.tolist(), median.baseline.tolist()) == ([4, 5], [2, 6])


def test_the_median_of_an_even_number_is_an_image():
    even = {"a": {0: 1.0, 1: 2.0, 2: 3.0, 3: 10.0}}
    assert pair_values(even, even, "median-image").model.tolist() == [2.0]


def test_seeds_may_differ_where_they_are_not_paired():
    other = {"a": {7: 2.0, 8: 3.0}, "b": {9: 6.0}}
    assert len(pair_values(MODEL, other, "all-pairs").prompts) == 7
    assert pair_values(MODEL, other, "mean-over-seeds").baseline.tolist() == [2.5, 6]


def test_some_prompts():
    paired = pair_values(MODEL, BASELINE)
    assert paired.only(["b"]).model.tolist() == [5] and paired.only(["b"]).prompts == ("b",)


@pytest.mark.parametrize(
    ("baseline", "mode", "message"),
    [
        ({"a": BASELINE["a"]}, "mean-over-seeds", "1 are common, 1 only the model's, 0 only the baseline's"),
        ({}, "all-pairs", "same prompts"),
        ({**BASELINE, "a": {0: 2.0, 1: 3.0}}, "best-of-n", "got 3 and 2"),
        ({**BASELINE, "b": {0: math.nan}}, "all-pairs", "'b' is not a finite number"),
    ],
)
def test_what_does_not_fit(baseline, mode, message):
    with pytest.raises(UserError, match=message):
        pair_values(MODEL, baseline, mode)


def test_the_same_seed_needs_the_same_seeds():
    """A user is told so before; see test_compare."""
    with pytest.raises(AssertionError):
        pair_values(MODEL, {**BASELINE, "b": {1: 6.0}}, "same-seed")


def test_nothing_at_all():
    for mode in MODES:
        with pytest.raises(UserError, match="at least one"):
            pair_values({}, {}, mode)


def test_choosers_that_do_not_fit():
    with pytest.raises(UserError, match="did not score the same images of 'a'"):
        pair_values(MODEL, BASELINE, "best-of-n", chosen_by=({"b": {0: 1.0}}, BASELINE))
    unknown = {**BASELINE, "b": {0: math.nan}}
    with pytest.raises(UserError, match="'b' that should choose an image is not a finite number"):
        pair_values(MODEL, BASELINE, "median-image", chosen_by=(MODEL, unknown))


def test_a_tie_is_as_near_as_the_largest_score_of_both_rounds():
    """Rounding of 1,000 is no win where either model has such a score."""
    for large in (0, 1):
        sides = [{"p": {0: 1.0}, "q": {0: 2.0}}, {"p": {0: 1.0 + 5e-4}, "q": {0: 2.0}}]
        sides[large]["r"], sides[1 - large]["r"] = {0: 1000.0}, {0: 0.0}
        assert pair_values(*sides).tie_tolerance == pytest.approx(1e-3)
