"""Judges of users: the world's own people, and a model that is shown choices in both orders."""

import numpy as np
import pytest
from PIL import Image

from diffpo.captioners.base import Case, Choice
from diffpo.captioners.judges import ChatJudge, WorldJudge, _question, _share
from diffpo.errors import UserError
from diffpo.worlds.shapes.render import render
from diffpo.worlds.shapes.scenes import Placement, Scene, parse_caption
from diffpo.worlds.users.people import people, utility

CAPTION = "a red circle left of a blue square on a white background"


def drawn(size: float) -> Image.Image:
    sides = (Placement(x, 32, size, 0.7, 0.9) for x in (17, 47))
    return Image.fromarray(render(Scene(parse_caption(CAPTION), *sides, background_level=0.96)))


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8))


def test_people_of_the_world_judge_by_their_utility():
    small, large = drawn(8), drawn(13)
    shares = WorldJudge().judge([Case(name, (), CAPTION, small, large, 0) for name in people()])
    expected = [float(utility(small, CAPTION, name) > utility(large, CAPTION, name)) for name in people()]
    assert shares == expected and 0 < sum(expected) < 40
    assert WorldJudge().judge([Case("user-00", (), CAPTION, small, small, 0)]) == [0.5]
    with pytest.raises(UserError, match="nobody in the users world is called 'ann'"):
        WorldJudge().judge([Case("ann", (), CAPTION, small, large, 0)])


def test_only_what_is_said_in_both_orders_counts():
    assert [_share("1", "2"), _share("2", "1"), _share("1", "1"), _share("2", "2"), _share("", "2")] == [
        1,
        0,
        0.5,
        0.5,
        0.5,
    ]


def test_choices_are_shown_in_an_order_that_is_drawn_and_said():
    choice = Choice("shown", noise(0), noise(1))
    turned = set()
    for key in range(12):
        content = _question(Case("ann", (choice,), "asked", noise(2), noise(3), key), turned=False)
        images = [part["image"] for part in content if part["type"] == "image"]
        texts = "".join(part["text"] for part in content if part["type"] == "text")
        first_is_chosen = np.array_equal(images[0], choice.chosen)
        assert ("preferred image 1" if first_is_chosen else "preferred image 2") in texts
        assert np.array_equal(images[2], noise(2)) and '"asked"' in texts
        turned.add(first_is_chosen)
    assert turned == {True, False}
    content = _question(Case("ann", (choice,), "asked", noise(2), noise(3), 0), turned=True)
    assert np.array_equal([part["image"] for part in content if part["type"] == "image"][2], noise(3))


def test_a_model_judges_the_same_whatever_the_order(language_model):
    judge = ChatJudge(path=str(language_model("llava_onevision")), device="cpu")
    shown = (Choice("one", noise(0), noise(1)), Choice("two", noise(2), noise(3)))
    cases = [Case("ann", shown, f"asked {i}", noise(10 + i), noise(20 + i), i) for i in range(4)]
    forward = judge.judge(cases)
    backward = judge.judge([Case(c.user, c.shown, c.prompt, c.second, c.first, c.key) for c in cases])
    assert set(forward) <= {0.0, 0.5, 1.0} and backward == [1 - share for share in forward]
    assert judge.provenance["orders"] == "both, else a tie" and judge.needs_choices
