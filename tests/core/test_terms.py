"""Terms by hand: which frames they average, which row they belong to, what a row adds up to."""

from __future__ import annotations

import torch

from diffpo.core.terms import Terms, whole_rows
from diffpo.core.types import Condition, Pair, PairBatch

TERMS = Terms(
    row=torch.tensor([0, 0, 2]),
    weight=torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.25, 0.75]], dtype=torch.float64),
    preference=torch.tensor([1.0, 0.0, 0.7]),
)
"""Row 0 has a term for each frame, row 1 none, row 2 one that leans on the second frame."""
FRAMES = torch.tensor([[1.0, 2.0], [30.0, 40.0], [4.0, 8.0]], dtype=torch.float64)


def test_mean_sum_and_count():
    """Row 2: 1/4 of 4 and 3/4 of 8 are 7."""
    values = TERMS.mean(FRAMES)
    assert values.tolist() == [1, 2, 7]
    assert TERMS.sum(values, 3).tolist() == [3, 0, 7] and TERMS.count(3).tolist() == [2, 0, 1]
    assert TERMS.sum(torch.stack([values, -values], dim=1), 3).tolist() == [[3, -3], [0, 0], [7, -7]]


def test_taking_some():
    some = TERMS.take(torch.tensor([1, 2]))
    assert some.mean(FRAMES).tolist() == [2, 7] and some.count(3).tolist() == [1, 0, 1]
    assert some.preference.tolist() == TERMS.preference[1:].tolist()


def test_no_terms_at_all_are_zero_and_have_a_gradient():
    """So that an update without a term is a step of zero loss, and no process waits for another."""
    frames = FRAMES.clone().requires_grad_()
    none = TERMS.take(torch.tensor([], dtype=torch.int64))
    total = none.sum(none.mean(frames), 3)
    assert total.tolist() == [0, 0, 0]
    total.sum().backward()
    assert not frames.grad.any()


def test_a_whole_row_is_the_mean_over_its_frames():
    latent, text = torch.zeros(3, 4, 2, 8, 8), Condition(torch.zeros(3, 1, 1))
    batch = PairBatch(Pair(latent, latent), Pair(text, text), torch.tensor([1.0, 0.0, 0.7]), torch.arange(3))
    terms = whole_rows(batch)
    assert terms.mean(FRAMES).tolist() == [1.5, 35, 6] and terms.count(3).tolist() == [1, 1, 1]
    assert torch.equal(terms.preference, batch.preference)
