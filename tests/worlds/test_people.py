"""The people of the users world: whose tastes they are, what pleases them, and the table of their choices."""

from collections import Counter
from math import cos, pi

import pytest
import torch
from pyarrow import parquet

from diffpo.worlds.assets import asset_path
from diffpo.worlds.shapes.render import render
from diffpo.worlds.shapes.scenes import Placement, Scene, parse_caption, split_of
from diffpo.worlds.shapes.verify import see
from diffpo.worlds.users.people import DEVIATION, FLIP_RATE, MIDDLE, people, place, prefers_first, taste, utility

CAPTION = "a red circle left of a blue square on a white background"


def picture(size: float, saturation: float):
    sides = (Placement(x, 32, size, saturation, 0.9) for x in (17, 47))
    return render(Scene(parse_caption(CAPTION), *sides, background_level=0.96))


def test_thirty_people_are_seen_and_ten_are_not_all_around_the_circle():
    known = people()
    assert list(known) == [f"user-{i:02d}" for i in range(40)] and known == people()
    unseen = sorted(person.angle for person in known.values() if not person.seen)
    assert len(unseen) == 10
    gaps = [b - a for a, b in zip(unseen, [*unseen[1:], unseen[0] + 2 * pi], strict=True)]
    assert max(gaps) < 1.2  # nobody unseen stands far from all others
    large_and_vivid = sum(cos(person.angle - pi / 4) > 0 for person in known.values())
    assert 22 <= large_and_vivid <= 28


def test_a_picture_is_placed_in_deviations_from_the_middle():
    small, large = place(see(picture(7, 0.9))), place(see(picture(13, 0.5)))
    assert small is not None and large is not None
    assert small[0] < 0 < large[0] and large[1] < 0 < small[1]
    area = (pi * 13**2 + (0.9 * 2 * 13) ** 2) / 64**2
    assert large[0] == pytest.approx((area - MIDDLE["coverage"]) / DEVIATION["coverage"], abs=0.25)
    assert large[1] == pytest.approx((0.5 - MIDDLE["saturation"]) / DEVIATION["saturation"], abs=0.15)


def test_everybody_likes_what_lies_in_their_direction_and_not_too_much_of_it():
    pictures = {name: picture(*look) for name, look in {"large": (13, 0.72), "small": (7.5, 0.72)}.items()}
    for person in people().values():
        likes_large = person.favourite[0] > 0
        better = utility(pictures["large"], CAPTION, person.name) > utility(pictures["small"], CAPTION, person.name)
        if abs(person.favourite[0]) > 0.5:
            assert better == likes_large, person
    lover = max(people().values(), key=lambda person: person.favourite[0])
    worth = [taste(see(picture(size, 0.72)), lover) for size in (9, 13.5, 15.5)]
    assert worth[0] < worth[1] and worth[1] > worth[2]  # the favourite covers 29 % of the picture


def test_the_mean_utility_is_everybodys():
    image = picture(12, 0.8)
    each = [utility(image, CAPTION, name) for name in people()]
    assert utility(image, CAPTION) == pytest.approx(sum(each) / 40)
    with pytest.raises(ValueError, match="nobody in the users world is called 'ann'"):
        utility(image, CAPTION, "ann")


def test_choices_are_noisy_and_sometimes_turned():
    draws = torch.rand(4000, 2, generator=torch.Generator().manual_seed(0)).tolist()
    clear = sum(prefers_first(5, 1, *pair) for pair in draws) / 4000
    even = sum(prefers_first(1, 1, *pair) for pair in draws) / 4000
    assert clear == pytest.approx(1 - FLIP_RATE, abs=0.01) and even == pytest.approx(0.5, abs=0.03)


def test_the_shipped_tables_hold_whose_choices_they_say():
    for split, seen in (("train", True), ("test", False)):
        table = parquet.read_table(asset_path(f"users/pairs/{split}.parquet"), columns=["prompt", "user_id", "kind"])
        rows = table.to_pylist()
        assert {people()[row["user_id"]].seen for row in rows} == {seen}
        assert set(Counter(row["user_id"] for row in rows).values()) == {128}
        assert len({(row["user_id"], row["prompt"]) for row in rows}) == len(rows)  # no prompt twice for anybody
        assert {split_of(prompt) for prompt in {row["prompt"] for row in rows}} == {"train"}
