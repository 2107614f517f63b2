"""Simulated annotators: the formula, the optimum, the noise as stated."""

from dataclasses import replace
from math import exp

import numpy as np
import pytest
import torch
from shapes_builder.make_pairs import FLIP_RATE, TEMPERATURE, TIE_THRESHOLD, choose, preference
from shapes_builder.sampling import BASE_STYLE, sample_scenes

from diffpo.worlds.shapes.annotators import ANNOTATORS, Taste, measure, taste_utility, utility
from diffpo.worlds.shapes.render import render
from diffpo.worlds.shapes.scenes import Placement, Scene, parse_caption, sample_prompts
from diffpo.worlds.shapes.verify import see

CAPTION = "a red circle left of a blue circle on a white background"


def scene(size=9.0, saturation=0.8, shift=0.0, caption=CAPTION):
    spec = parse_caption(caption)
    return render(
        Scene(
            spec,
            Placement(17, 32 + shift, size, saturation, 1.0),
            Placement(47, 32 + shift, size, saturation, 1.0),
            0.96,
        )
    )


def test_what_taste_looks_at_is_measured_right():
    taste = measure(see(scene(size=9.0, saturation=0.8)))
    assert taste.coverage == pytest.approx(2 * np.pi * 81 / 4096, rel=0.03)
    assert taste.saturation == pytest.approx(0.8, abs=0.02)
    assert taste.centring == pytest.approx(1.0, abs=0.02)
    assert measure(see(scene(shift=16))).centring == pytest.approx(0.5, abs=0.02)


def test_the_formula_by_hand():
    """At the optimum in two of three, one width off in the third: 2.0 + 0.8 + 0.5 exp(-1/2) = 3.10327."""
    ada = ANNOTATORS["ada"]
    taste = replace(ada.optimum, centring=ada.optimum.centring - 0.2)
    assert taste_utility(taste, ada) == pytest.approx(2.0 + 0.8 + 0.5 * exp(-0.5))


def test_fidelity_counts_twice_its_score():
    right = utility(scene(), CAPTION, "ada")
    wrong = utility(scene(), CAPTION.replace("left", "right"), "ada")
    assert right - wrong == pytest.approx(2 / 7)


def test_too_much_of_a_good_thing_lowers_the_judges_utility():
    worth = [utility(scene(size=size), CAPTION) for size in (6.0, 8.0, 10.0, 11.5, 13.0, 14.5)]
    best = int(np.argmax(worth))
    assert 1 < best < len(worth) - 1
    assert worth[0] < worth[best] - 0.3 and worth[-1] < worth[best] - 0.1
    colour = [utility(scene(saturation=s), CAPTION) for s in (0.45, 0.8, 1.0)]
    assert colour[1] > max(colour[0], colour[2])


def test_the_base_styles_average_is_off_the_optimum():
    specs = [parse_caption(caption) for caption in sample_prompts("train", 200)]
    scenes = sample_scenes(specs, torch.Generator().manual_seed(0), BASE_STYLE)
    coverage = np.mean([measure(see(render(s))).coverage for s in scenes])
    optimum = np.mean([a.optimum.coverage for a in ANNOTATORS.values()])
    assert 1.5 < optimum / coverage < 2.1


def test_users_differ():
    pale, vivid = scene(size=12, saturation=0.5), scene(size=12, saturation=0.95)
    assert utility(pale, CAPTION, "dee") > utility(vivid, CAPTION, "dee")
    assert utility(pale, CAPTION, "ada") < utility(vivid, CAPTION, "ada")


def test_the_judge_is_the_mean_of_all():
    image = scene()
    assert len(ANNOTATORS) >= 4
    assert utility(image, CAPTION) == pytest.approx(np.mean([utility(image, CAPTION, name) for name in ANNOTATORS]))


@pytest.mark.parametrize("image", [np.full((64, 64, 3), 245, np.uint8), np.zeros((64, 64, 3), np.uint8)])
def test_no_object_gets_the_worst_taste_never_nan(image):
    assert measure(see(image)) is None
    assert utility(image, CAPTION) == pytest.approx(2 / 7 if image[0, 0, 0] else 0.0)


def test_an_unknown_annotator_is_refused():
    with pytest.raises(ValueError, match=r"unknown annotator 'eve'.*ada"):
        utility(scene(), CAPTION, "eve")


def test_preference_is_bradley_terry():
    assert preference(1.0, 1.0) == 0.5
    assert preference(1.0 + TEMPERATURE, 1.0) == pytest.approx(1 / (1 + exp(-1)))


def test_choices_have_the_stated_noise():
    generator = torch.Generator().manual_seed(0)
    near = TIE_THRESHOLD - 0.01
    assert {choose(1.0, 1.0 + near, generator) for _ in range(50)} == {0.5}
    far = [choose(5.0, 0.0, generator) for _ in range(4000)]  # nothing but flips
    assert np.mean(far) == pytest.approx(1 - FLIP_RATE, abs=0.012)
    gap = 1.5 * TEMPERATURE
    p = preference(gap, 0.0)
    middle = [choose(gap, 0.0, generator) for _ in range(4000)]
    assert np.mean(middle) == pytest.approx(p * (1 - FLIP_RATE) + (1 - p) * FLIP_RATE, abs=0.025)


def test_a_taste_has_no_missing_parts():
    assert {*vars(Taste(0.1, 0.2, 0.3))} == {"coverage", "saturation", "centring"}
