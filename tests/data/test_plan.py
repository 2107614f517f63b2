"""The plan is a pure function, and the content of an effective batch does not depend on how it is shared out."""

import itertools

import numpy as np
import pytest

from diffpo.data.plan import Schedule, epoch_batches
from diffpo.errors import UserError

SPLITS = [(1, 1, 8), (2, 1, 4), (1, 8, 1), (4, 2, 1), (2, 2, 2)]  # processes, micro-batches, pairs: 8 in all


def rows(*sizes):
    """Groups of rows with gaps, as broken rows leave them."""
    numbers = iter(np.flatnonzero(np.arange(3 * sum(sizes)) % 3))
    return tuple(np.array(list(itertools.islice(numbers, size))) for size in sizes)


@pytest.mark.parametrize("groups", [rows(50), rows(23, 9, 4), rows(8, 8)], ids=str)
@pytest.mark.parametrize(("world", "micro_steps", "micro_batch"), SPLITS)
def test_effective_batches_hold_the_same_rows_however_they_are_split(groups, world, micro_steps, micro_batch):
    schedule = Schedule(5, groups, world, micro_steps, micro_batch)
    whole = Schedule(5, groups, 1, 1, 8)
    assert schedule.updates_per_epoch == whole.updates_per_epoch == sum(len(group) // 8 for group in groups)
    for update in range(3 * schedule.updates_per_epoch):
        parts = np.concatenate([schedule.indices(update, rank).ravel() for rank in range(world)])
        assert len(set(parts)) == 8
        assert set(parts) == set(whole.indices(update, 0).ravel())
        assert sum(set(parts) <= set(group) for group in groups) == 1


@pytest.mark.parametrize("groups", [rows(50), rows(23, 9, 4)], ids=str)
def test_an_epoch_uses_no_row_twice_and_drops_only_remainders(groups):
    schedule = Schedule(0, groups, 1, 2, 4)
    used = [i for update in range(schedule.updates_per_epoch) for i in schedule.indices(update, 0).ravel()]
    assert len(used) == len(set(used)) == 8 * schedule.updates_per_epoch
    assert set(used) <= set(np.concatenate(groups))
    for group in groups:
        assert len(set(used) & set(group)) == len(group) // 8 * 8


def test_every_row_has_its_turn_in_some_epoch():
    schedule = Schedule(0, rows(15), 1, 1, 8)
    assert set(np.concatenate([schedule.indices(update, 0).ravel() for update in range(20)])) == set(rows(15)[0])


def test_epochs_and_seeds_differ_and_calls_do_not():
    (group,) = rows(64)
    orders = {tuple(epoch_batches(seed, epoch, [group], 8).ravel()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert (epoch_batches(1, 2, [group], 8) == epoch_batches(1, 2, [group], 8)).all()


def test_batches_of_different_sizes_are_mixed_over_the_epoch():
    groups = rows(400, 400)
    schedule = Schedule(0, groups, 1, 1, 8)
    first = [schedule.indices(update, 0)[0, 0] in groups[0] for update in range(50)]
    assert 10 < sum(first) < 40


def test_an_update_is_a_place_in_its_epoch_and_position_is_arithmetic():
    groups, shape = rows(23, 9), {"world": 2, "micro_steps": 2, "micro_batch": 2}
    schedule = Schedule(7, groups, **shape)
    assert schedule.updates_per_epoch == 3
    assert schedule.position(7) == (2, 1)
    for update, rank, micro in itertools.product(range(9), range(2), range(2)):
        epoch, step = schedule.position(update)
        batch = epoch_batches(7, epoch, groups, effective=8)[step]
        assert (batch.reshape(2, 2, 2)[micro, rank] == schedule.indices(update, rank)[micro]).all()


def test_rows_of_rare_sizes_are_counted():
    assert Schedule(0, rows(20, 7, 3), 1, 1, 8).never_used == 10
    assert Schedule(0, rows(20), 1, 1, 8).never_used == 0


def test_too_few_rows_for_one_batch_is_the_users_error():
    with pytest.raises(UserError, match=r"has 7 usable pairs, fewer than one effective batch of 8 \(2 processes x 2"):
        Schedule(0, rows(7), 2, 2, 2)
    with pytest.raises(UserError, match=r"has 7 \+ 5 usable pairs \(by image size; a batch holds one size\)"):
        Schedule(0, rows(7, 5), 1, 1, 8)
