"""Verdicts of users, summed up over users; and telling users from their states."""

import numpy as np
import pytest

from diffpo.compare.personal import Verdict, agreement, summarise, top_k
from diffpo.compare.users import user_win_rate


def verdicts(shares):
    """By user: seen or not, and what the first image gets for each prompt."""
    return [
        Verdict(name, seen, f"{name} {i}", share)
        for name, (seen, values) in shares.items()
        for i, share in enumerate(values)
    ]


def test_seen_and_unseen_users_are_apart_and_count_the_same_each():
    shares = {"a": (True, [1, 1, 0]), "b": (True, [1]), "c": (False, [0, 0.5]), "d": (False, [1, 1])}
    found = summarise("own", "base", verdicts(shares))
    assert found.users == {"a": pytest.approx(2 / 3), "b": 1.0, "c": 0.25, "d": 1.0}
    assert found.groups["seen"].macro.estimate == pytest.approx((2 / 3 + 1) / 2)
    assert found.groups["unseen"].macro.estimate == pytest.approx(0.625)
    unseen = [v for v in verdicts(shares) if not v.seen]
    by_hand = user_win_rate([v.share for v in unseen], [v.prompt for v in unseen], [v.user for v in unseen])
    assert found.groups["unseen"] == by_hand
    assert found.to_dict()["groups"]["unseen"]["macro"]["ci_low"] == by_hand.macro.ci_low


def test_a_group_of_one_user_has_no_rate():
    found = summarise("own", "base", verdicts({"a": (True, [1, 0]), "b": (True, [1]), "c": (False, [1])}))
    assert set(found.groups) == {"seen"} and set(found.users) == {"a", "b", "c"}


def test_users_are_told_from_draws_that_were_left_out():
    draws = np.random.default_rng(0)
    owners = [f"user {i}" for i in range(20) for _ in range(5)]
    tastes = np.repeat(draws.normal(size=(20, 8)), 5, axis=0)
    clear = top_k(tastes + 0.1 * draws.normal(size=tastes.shape), owners)
    assert clear["users"] == 20 and clear["draws"] == 100 and clear["top"]["1"] == 1.0
    assert clear["chance"] == {"1": 0.05, "2": 0.1, "4": 0.2, "8": 0.4, "16": 0.8}
    luck = top_k(draws.normal(size=tastes.shape), owners)["top"]
    assert 0 <= luck["1"] < 0.2 and abs(luck["8"] - 0.4) < 0.2  # its own draw tells nothing of itself
    blurred = top_k(tastes + 2 * draws.normal(size=tastes.shape), owners)["top"]
    assert luck["1"] < blurred["1"] < 1 and blurred["1"] < blurred["4"] < blurred["16"]


def test_a_user_with_one_draw_is_left_out():
    found = top_k([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1], [1, 1]], ["a", "a", "b", "b", "c"], ks=(1, 2, 4))
    assert found == {"users": 2, "draws": 4, "top": {"1": 1.0, "2": 1.0}, "chance": {"1": 0.5, "2": 1.0}}


def test_agreement_is_over_pairs_and_over_users():
    found = agreement({"a": [1, 1, 0.5, 0], "b": [1], "c": []})
    assert found == {"pairs": 5, "agreement": 0.7, "users": {"a": 0.625, "b": 1.0}}
    assert agreement({"a": []}) == {"pairs": 0, "agreement": None, "users": {}}
