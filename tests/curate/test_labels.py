"""From scores to soft labels, by hand."""

import math

import numpy as np
import pytest

from diffpo.curate.labels import RELEASED, UNCHANGED, Bounds, Labelling, other_side, preferences
from diffpo.errors import UserError

COSINE = {"scorer": "pickscore", "scale": "cosine"}


@pytest.mark.parametrize(
    ("gap", "expected"), [(0.33, 0.505), (0.83, 0.5125), (1.67, 0.525), (3.33, 0.55), (8.3, 0.6225), (16.7, 0.731)]
)
def test_the_released_constants_give_the_released_labels(gap, expected):
    """Gaps of PickScore as people quote it, 100 cos: r = 0.01 gap / 0.16658, and sigmoid(r) as in SmPO's code."""
    bounds = Labelling(normalise="released").find_bounds(np.array([[0.2, 0.1]]))
    assert bounds.high - bounds.low == pytest.approx(0.16658, abs=1e-5)
    label = preferences(np.array([[0.13 + 0.01 * gap, 0.13]]), bounds, 1.0)
    assert label == pytest.approx([expected], abs=6e-4)


def test_a_label_is_the_softmax_of_the_normalised_scores():
    """r = 0.75 and 0.25, T = 0.5: e^1.5 / (e^1.5 + e^0.5) = 4.4817 / 6.1304 = 0.7311."""
    label = preferences(np.array([[2.5, 1.5], [1.5, 2.5]]), Bounds(1.0, 3.0), 0.5)
    by_hand = math.exp(1.5) / (math.exp(1.5) + math.exp(0.5))
    assert by_hand == pytest.approx(0.7311, abs=1e-4)
    assert label == pytest.approx([by_hand, 1 - by_hand], abs=1e-12)


def test_minmax_and_quantiles_look_at_both_sides():
    scores = np.arange(100.0).reshape(50, 2)
    assert Labelling().find_bounds(scores) == Bounds(0.0, 99.0)
    found = Labelling(normalise="quantiles", quantiles=(0.1, 0.9)).find_bounds(scores)
    assert (found.low, found.high) == pytest.approx((9.9, 89.1))
    assert Labelling(normalise="none").find_bounds(scores) == UNCHANGED


def test_an_outlier_beyond_a_quantile_makes_no_tie():
    label = preferences(np.array([[9.0, 8.0]]), Bounds(0.0, 1.0), 1.0)
    assert label == pytest.approx([1 / (1 + math.exp(-1))])


def test_equal_scores_are_exactly_one_half_and_extremes_stay_in_range():
    label = preferences(np.array([[0.1, 0.1], [1e6, -1e6], [-1e6, 1e6]]), UNCHANGED, 1e-6)
    assert label.tolist() == [0.5, 1.0, 0.0]


def test_scores_that_are_all_alike_cannot_be_spread_out():
    with pytest.raises(UserError, match=r"both ends of the scores are 2.*--normalise minmax or none"):
        Labelling().find_bounds(np.full((4, 2), 2.0))


@pytest.mark.parametrize("given", [{"quantiles": (0.9, 0.1)}, {"quantiles": (0.0, 1.1)}, {"temperature": 0.0}])
def test_values_out_of_range(given):
    with pytest.raises(UserError, match=next(iter(given))):
        Labelling(**given)


@pytest.mark.parametrize("provenance", [{"scorer": "pickscore", "scale": "logit"}, {"scorer": "shapes"}, {}])
def test_the_released_constants_are_for_the_cosine_of_pickscore(provenance):
    Labelling(normalise="released").check_scorer(COSINE)
    Labelling().check_scorer(provenance)
    with pytest.raises(UserError, match=r"released.*--scorer pickscore,scale=cosine, or --normalise minmax"):
        Labelling(normalise="released").check_scorer(provenance)
    assert Bounds(0.11543526500463486, 0.28201571106910706) == RELEASED


def test_each_column_of_a_side_has_its_counterpart():
    names = ("chosen", "rejected_prompt", "chosen_seed", "prompt", "user_id", "segments")
    assert [other_side(n) for n in names] == ["rejected", "chosen_prompt", "rejected_seed", *names[3:]]
