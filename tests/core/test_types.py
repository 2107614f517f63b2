"""Pairs, conditions, errors and random draws."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, replace

import pytest
import torch

from diffpo.config.blocks import make
from diffpo.core.block import Block
from diffpo.core.types import Condition, Denoised, Noised, Pair, PairBatch, Rng
from diffpo.errors import UserError


def noised(target: torch.Tensor) -> Noised:
    level = torch.ones(len(target))
    return Noised(torch.zeros_like(target), torch.zeros(len(target)), level, level, target)


def test_a_pair_maps_and_unpacks_in_order():
    assert Pair(1, 2).map(lambda x: 10 * x) == Pair(10, 20)
    assert tuple(Pair("chosen", "rejected")) == ("chosen", "rejected")


def test_a_side_that_is_not_used_stays_none():
    """`fn` would fail on None: it is never asked."""
    assert Pair(1, None).map(lambda x: x + 1) == Pair(2, None)
    assert Pair(None, 1).map(lambda x: x + 1) == Pair(None, 2)


def test_values_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        Pair(1, 2).chosen = 3


def test_a_condition_moves_floats_only():
    condition = Condition(
        torch.ones(2, 3, 4),
        torch.ones(2, 5),
        torch.tensor([[True, False, True]] * 2),
        {"size": torch.full((2, 6), 4097), "weight": torch.ones(2)},
        torch.ones(2, 1, 4),
    )
    half = condition.to("cpu", torch.float16)
    assert half.text.dtype == half.pooled.dtype == half.user.dtype == half.extra["weight"].dtype == torch.float16
    assert half.mask.dtype == torch.bool
    assert half.extra["size"].dtype == torch.int64, "half precision cannot hold 4097"
    assert half.extra["size"].unique().tolist() == [4097]


def test_conditions_are_concatenated_part_by_part():
    first = Condition(torch.zeros(1, 2, 3), torch.zeros(1, 3), None, {"size": torch.tensor([[1, 2]])})
    second = Condition(torch.ones(2, 2, 3), torch.ones(2, 3), None, {"size": torch.tensor([[3, 4], [5, 6]])})
    joined = Condition.cat([first, second])
    assert joined.text[:, 0, 0].tolist() == joined.pooled[:, 0].tolist() == [0, 1, 1]
    assert joined.extra["size"].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert joined.mask is None and joined.user is None


def test_what_both_sides_share_is_joined_once_and_not_copied_to_stand_side_by_side():
    """Texts with masks of one length; sizes are each side's own."""

    def pair(fill: float) -> Pair[Condition]:
        told = Condition(torch.full((1, 2, 3), fill), mask=torch.ones(1, 2, dtype=torch.bool))
        return Pair(*(replace(told, extra={"size": torch.tensor([[fill, side]])}) for side in (7.0, 8.0)))

    both = Condition.cat_pairs([pair(1.0), pair(2.0)])
    assert both.chosen.text is both.rejected.text and both.chosen.mask is both.rejected.mask
    assert both.rejected.extra["size"].tolist() == [[1, 8], [2, 8]] and both.chosen.text[:, 0, 0].tolist() == [1, 2]
    beside = Condition.stack([*both])
    assert beside.text.shape == (2, 2, 2, 3) and beside.text[1].data_ptr() == both.chosen.text.data_ptr()
    assert beside.extra["size"].tolist() == [[[1, 7], [2, 7]], [[1, 8], [2, 8]]]
    other = Condition.stack([both.chosen, replace(both.rejected, text=both.chosen.text + 1)])
    assert torch.equal(other.text[1], both.chosen.text + 1)


def test_parts_with_different_extras_are_not_joined():
    with pytest.raises(KeyError):
        Condition.cat(
            [Condition(torch.zeros(1, 2, 3), extra={"size": torch.zeros(1)}), Condition(torch.zeros(1, 2, 3))]
        )


def test_a_batch_moves_both_sides_and_keeps_its_index_and_labels():
    text = Condition(torch.zeros(2, 3, 4))
    latent = torch.zeros(2, 4, 1, 8, 8)
    batch = PairBatch(
        Pair(latent, None), Pair(text, None), torch.ones(2), torch.tensor([9, 4]), torch.tensor([[1], [-1]])
    )
    there = batch.to("cpu", torch.float64)
    assert there.latent.chosen.dtype == there.cond.chosen.text.dtype == torch.float64
    assert there.preference is batch.preference and there.segments is batch.segments, "labels stay where they are"
    assert there.latent.rejected is None and there.cond.rejected is None
    assert there.index is batch.index and there.size == 2
    assert there.shape == (4, 1, 8, 8)


def test_error_by_hand():
    """Two channels of 1 x 2 pixels, two frames; the mean is over channels, height and width, not over frames.

    Frame 0: differences 1, 2 | 3, 4 -> (1 + 4 + 9 + 16) / 4 = 7.5.  Frame 1: 0, 0 | 2, 0 -> 4 / 4 = 1.
    """
    prediction = torch.tensor([[[[[1.0, 2.0]], [[0.0, 0.0]]], [[[3.0, 4.0]], [[2.0, 0.0]]]]], dtype=torch.float64)
    assert prediction.shape == (1, 2, 2, 1, 2)
    error = Denoised(prediction, noised(torch.zeros_like(prediction))).error
    assert error.tolist() == [[7.5, 1.0]]
    assert error.dtype == torch.float64


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_before_the_difference(half):
    """1 + 2^-7 (exact in both halves) against 1.001, which neither holds: (0.0078125 - 0.001)^2 = 4.641e-5.

    In bfloat16 the target would round to 1 and the error to 6.1e-5.
    """
    prediction = torch.full((1, 4, 1, 8, 8), 1 + 2**-7).to(half)
    error = Denoised(prediction, noised(torch.full((1, 4, 1, 8, 8), 1.001))).error
    assert error.dtype == torch.float32
    assert error.item() == pytest.approx(0.0068125**2, rel=1e-4)


def test_float64_stays():
    """1e-12 apart: a float32 difference would be zero."""
    target = torch.ones(1, 4, 1, 2, 2, dtype=torch.float64)
    assert Denoised(target + 1e-12, noised(target)).error.item() == pytest.approx(1e-24, rel=1e-3)


def rows(rng: Rng, purpose: str = "noise") -> dict[int, list[float]]:
    return dict(zip(rng.index.tolist(), rng.normal((4, 1, 8, 8), purpose).flatten(1).tolist(), strict=True))


def test_draws_depend_on_the_row_and_not_on_its_batch():
    together = rows(Rng(5, 1, torch.tensor([3, 8, 11, 4])))
    assert rows(Rng(5, 1, torch.tensor([4, 11]))) == {row: together[row] for row in (4, 11)}
    assert rows(Rng(5, 1, torch.tensor([8]))) == {8: together[8]}
    uniform = Rng(5, 1, torch.tensor([3, 8, 11])).uniform("time")
    assert torch.equal(uniform.flip(0), Rng(5, 1, torch.tensor([11, 8, 3])).uniform("time"))


def test_draws_leave_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = Rng(0, 0, torch.tensor([1])).normal((3,), "noise")
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(Rng(0, 0, torch.tensor([1])).normal((3,), "noise"), first)


def test_every_part_of_the_key_matters():
    """Different seeds, epochs, rows and purposes; and no two keys are the same text by chance (1, 12 | 11, 2)."""
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 12, 0), (11, 2, 0), (1, 1, 2), (1, 11, 2), (11, 1, 2)]
    values = [
        Rng(seed, epoch, torch.tensor([row])).uniform(purpose).item()
        for seed, epoch, row in keys
        for purpose in ("time", "noise", "noise/chosen")
    ]
    assert len(set(values)) == len(values) == 27


def test_draws_have_their_distribution():
    """10,000 numbers each: four standard errors around the mean, and the variances 1/12 and 1 within 5 %."""
    index = torch.arange(10_000)
    uniform = Rng(0, 0, index).uniform("time")
    assert uniform.dtype == torch.float64 and uniform.shape == (10_000,)
    assert uniform.min() >= 0 and uniform.max() < 1
    assert uniform.mean().item() == pytest.approx(0.5, abs=4 * (1 / 12 / 10_000) ** 0.5)
    assert uniform.var().item() == pytest.approx(1 / 12, rel=0.05)
    normal = Rng(0, 0, index[:250]).normal((40,), "noise")
    assert normal.dtype == torch.float32 and normal.shape == (250, 40)
    assert normal.mean().item() == pytest.approx(0, abs=4 / 10_000**0.5)
    assert normal.var().item() == pytest.approx(1, rel=0.05)


def test_known_draws():
    """Pinned: a change here changes every run that somebody wants to repeat."""
    rng = Rng(7, 2, torch.tensor([0, 5, 123456]))
    assert rng.uniform("time").tolist() == [0.029726745423734213, 0.4978438748764552, 0.8256204763127974]
    expected = torch.tensor(
        [[-0.9812713861, 0.9491166472], [1.6555387974, -0.5680047274], [1.7839647532, 2.1493275166]]
    )
    torch.testing.assert_close(rng.normal((2,), "noise"), expected, rtol=1e-6, atol=0)
    image = torch.tensor([0.4364528358, 1.5537034273, 0.4661883116])
    torch.testing.assert_close(rng.normal((4, 1, 8, 8), "noise")[:, 0, 0, 0, 0], image, rtol=1e-6, atol=0)


def test_a_block_refuses_unknown_keys():
    @dataclass(frozen=True, kw_only=True)
    class Knobs(Block):
        beta: float = 1.0

    assert make(Knobs, {"beta": 2}, "knobs") == Knobs(beta=2.0)
    with pytest.raises(UserError, match=r"knobs\.bta: unknown key"):
        make(Knobs, {"bta": 2}, "knobs")


def told(length: int, mask: list[bool] | None = None, fill: float = 1.0) -> Condition:
    held = None if mask is None else torch.tensor([mask])
    return Condition(torch.full((1, length, 2), fill), mask=held)


def test_captions_of_different_length_are_padded_and_masked():
    """Zeros behind the shorter text, hidden; a part without a mask holds tokens only; masks stay boolean."""
    joined = Condition.cat([told(2, [True, False], 1.0), told(4, None, 2.0), told(3, [True, True, True], 3.0)])
    assert joined.text[:, :, 0].tolist() == [[1, 1, 0, 0], [2, 2, 2, 2], [3, 3, 3, 0]]
    assert joined.mask.dtype == torch.bool
    assert joined.mask.tolist() == [[True, False, False, False], [True] * 4, [True, True, True, False]]


def test_second_texts_of_different_length_are_padded_and_masked():
    one, two = (
        Condition(torch.ones(1, 2, 4), extra={"quoted": torch.ones(1, n, 3), "quoted_mask": torch.ones(1, n).bool()})
        for n in (1, 3)
    )
    both = Condition.cat([one, two])
    assert both.extra["quoted_mask"].tolist() == [[True, False, False], [True] * 3]
    assert both.extra["quoted"].sum((1, 2)).tolist() == [3.0, 9.0] and both.extra["quoted"].shape == (2, 3, 3)
    assert torch.equal(Condition.cat([two, two]).extra["quoted"][:1], two.extra["quoted"])


def test_texts_of_a_family_without_masks_have_one_length():
    assert Condition.cat([told(3), told(3)]).mask is None
    with pytest.raises(AssertionError, match=r"texts of \[2, 3\] tokens were given without masks"):
        Condition.cat([told(2), told(3)])
