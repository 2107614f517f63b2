"""User adapters: an exact no-op until something was learned, and for the null user."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_steps import TOLD, ask, make, move, pair_batch, with_users
from tiny_users import user_states


def told(batch, users):
    return replace(batch, cond=batch.cond.map(lambda cond: replace(cond, user=users)))


@pytest.mark.parametrize("name", TOLD)
def test_what_is_exactly_the_base(pipelines, name):
    """A fresh adapter; later the null user, in a row among others, and the reference. In float32, to the bit."""
    base, batch = make(pipelines(name), "full")[0], pair_batch(name, [0, 1, 2])
    policy, reference = make(pipelines(name), "user")
    plain = ask(base, batch)
    assert torch.equal(ask(policy, with_users(batch)), plain)
    move(policy.network, 0.3)
    users = user_states(3)
    users[1] = 0
    answer = ask(policy, told(batch, users))
    moved_by = (answer - plain).abs().flatten(1).amax(1)
    assert torch.equal(answer[1], plain[1]) and (moved_by[[0, 2]] > 1e-2).all()
    assert torch.equal(ask(policy, batch), plain) and torch.equal(ask(reference, told(batch, users)), plain)
