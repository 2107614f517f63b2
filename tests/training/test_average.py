"""The average of the weights, by hand and through a checkpoint."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffpo.training.average import Average


@pytest.fixture
def network():
    """Two weights, of which one is frozen."""
    made = nn.Linear(1, 1, dtype=torch.float64)
    nn.init.ones_(made.weight)
    nn.init.ones_(made.bias)
    made.bias.requires_grad_(False)
    return made


def test_by_hand(network):
    """The decay of update n is min(decay, n / (9 + n)), n counted from 0 after diffusers' first; then 0.5 at most."""
    average = Average(network, decay=0.5)
    expected = 1.0
    for n, value in enumerate((3.0, 5.0, -2.0)):
        nn.init.constant_(network.weight, value)
        average.update(network)
        decay = 0.0 if n == 0 else min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
        assert average.whole(network)["weight"].item() == pytest.approx(expected, rel=1e-12)
    assert average.updates == 3


def test_only_what_learns_is_averaged(network):
    assert Average(network, decay=0.5).whole(network).keys() == {"weight"}


def test_weights_come_back_even_after_an_error(network):
    average = Average(network, decay=0.5)
    nn.init.constant_(network.weight, 4.0)
    with pytest.raises(RuntimeError), average.applied(network):
        assert network.weight.item() == 1.0
        raise RuntimeError
    assert network.weight.item() == 4.0


def test_loading_goes_on_where_saving_stopped(network):
    a, b = Average(network, decay=0.9), Average(network, decay=0.9)
    for value in (2.0, 7.0):
        nn.init.constant_(network.weight, value)
        a.update(network)
    b.load(network, a.whole(network), a.updates)
    assert network.weight.item() == 7.0  # the weights themselves stay
    nn.init.constant_(network.weight, -3.0)
    for average in (a, b):
        average.update(network)
    assert a.whole(network)["weight"].equal(b.whole(network)["weight"])
    assert a.updates == b.updates == 3
