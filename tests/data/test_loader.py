"""What a batch holds, and what it depends on."""

import dataclasses
import time
import weakref
from functools import partial
from itertools import chain

import pytest
import torch
from tiny_encoder import TinyEncoder

from diffpo.core.segments import causal_frames
from diffpo.core.types import Rng
from diffpo.data import Pairs, Table, load_splits
from diffpo.data import loader as batches
from diffpo.data.cache import EncodingCache
from diffpo.data.encode import LiveEncodings
from diffpo.data.loader import PairLoader
from diffpo.data.plan import Schedule
from diffpo.data.segments import SegmentLabels
from diffpo.disk import ahead as reading
from diffpo.errors import UserError


@pytest.fixture
def loader(encoder):
    def make(source, *, cached=True, sides=("chosen", "rejected"), dropout=0.0, encoder=encoder, segments=False):
        table = load_splits(source).train
        if not cached:
            encodings = LiveEncodings(table, source, encoder, seed=4, sides=sides)
        else:
            cache = EncodingCache(table, source, encoder, seed=4, sides=sides)
            cache.fill()
            encodings = cache.open()
        held, frames = partial(causal_frames, factor=4), encodings.targets[:, 0]
        labels = SegmentLabels(table, frames, source, encoder.rule, held, None) if segments else None
        return PairLoader(table, encodings, seed=4, caption_dropout=dropout, sides=sides, labels=labels)

    return make


def same(a, b):
    """Whether two dataclasses of tensors hold the same bits."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a is None and b is None


def test_a_batch_holds_samples_of_the_posterior(records, jsonl, loader, encoder):
    source = Pairs(path=jsonl(records(6)), resolution=16)
    batch = loader(source).batch([4, 1, 3], epoch=2)
    assert batch.index.tolist() == [4, 1, 3]
    live = LiveEncodings(load_splits(source).train, source, encoder, seed=4)
    for side in ("chosen", "rejected"):
        latent = getattr(batch.latent, side)
        assert (latent.shape, latent.dtype) == ((3, 4, 1, 4, 4), torch.float32)
        noise = Rng(4, 2, batch.index).normal((4, 1, 4, 4), f"posterior/{side}")
        for k, i in enumerate([4, 1, 3]):
            row = live.images(i)
            assert torch.equal(latent[k], row[f"{side}_mean"] + row[f"{side}_std"] * noise[k])
            assert torch.equal(getattr(batch.cond, side).extra["size"][k], row[f"{side}_size"])


def test_labels_come_from_the_table(records, jsonl, loader):
    labels = {"preference": lambda i: i / 10, "segments": lambda i: [[1], [-1], [0]][i % 3], "weight": lambda i: i / 2}
    source = Pairs(path=jsonl(records(4, **labels)), resolution=16)
    batch = loader(source, segments=True).batch([3, 1], 0)
    assert batch.preference.tolist() == pytest.approx([0.3, 0.1])
    assert batch.segments.tolist() == [[1], [-1]] and batch.weight.tolist() == [1.5, 0.5]
    assert loader(source).batch([3, 1], 0).segments is None, "the method reads none"


def test_without_labels_every_preference_is_one(records, jsonl, loader):
    batch = loader(Pairs(path=jsonl(records(3)), resolution=16)).batch([0, 2], 0)
    assert batch.preference.tolist() == [1.0, 1.0]
    assert batch.segments is None and batch.weight is None


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_cached_and_uncached_updates_are_the_same_bits(records, jsonl, loader, dtype):
    rows = records(9, size=lambda i: (24, 20) if i % 2 else (20, 40))
    source = Pairs(path=jsonl(rows), resolution=16, crop="random", flip=True, buckets=True, cache_dtype=dtype)
    one, other = (loader(source, cached=cached, dropout=0.5) for cached in (True, False))
    schedule = Schedule(4, one.groups, world=2, micro_steps=1, micro_batch=2)
    assert [g.tolist() for g in one.groups] == [g.tolist() for g in other.groups]
    for rank in range(2):
        updates = list(one.updates(schedule, 1, 5, rank=rank))
        assert len(updates) == 4
        for a, b in zip(updates, other.updates(schedule, 1, 5, rank=rank), strict=True):
            assert all(same(x, y) for x, y in zip(a, b, strict=True))
            assert all(x.latent.chosen.dtype == x.cond.chosen.text.dtype == torch.float32 for x in a)


def test_a_row_does_not_depend_on_its_batch(records, jsonl, loader):
    pairs = loader(Pairs(path=jsonl(records(6)), resolution=16), dropout=0.5)
    together = pairs.batch([0, 5, 2], 3)
    for k, i in enumerate([0, 5, 2]):
        alone = pairs.batch([i], 3)
        assert torch.equal(alone.latent.rejected[0], together.latent.rejected[k])
        length = alone.cond.chosen.text.shape[1]
        assert torch.equal(alone.cond.chosen.text[0], together.cond.chosen.text[k, :length])


def test_epochs_draw_new_samples_and_updates_follow_the_plan(records, jsonl, loader):
    pairs = loader(Pairs(path=jsonl(records(4)), resolution=16))
    schedule = Schedule(4, pairs.groups, micro_steps=2, micro_batch=2)
    for update, (first, second) in enumerate(pairs.updates(schedule, 0, 3)):
        assert torch.stack([first.index, second.index]).tolist() == schedule.indices(update, 0).tolist()
        assert same(first, pairs.batch(first.index, update))
    assert not torch.equal(pairs.batch([1], 0).latent.chosen, pairs.batch([1], 1).latent.chosen)


def test_captions_are_dropped_per_pair_and_anew_each_epoch(records, jsonl, loader, encoder):
    rows = records(6, rejected_prompt=lambda i: f"its own {i}")
    pairs = loader(Pairs(path=jsonl(rows), resolution=16), dropout=0.4)
    empty, drops = encoder.encode_prompt("")["text"], []
    for epoch in range(20):
        batch = pairs.batch(range(6), epoch)
        lengths = [cond.mask.sum(1) for cond in batch.cond]
        dropped = lengths[0] == 1
        assert torch.equal(dropped, lengths[1] == 1)
        assert torch.equal(batch.cond.rejected.text[dropped][:, :1], empty.expand(int(dropped.sum()), 1, 6))
        drops.append(dropped)
    assert 0.25 < torch.stack(drops).float().mean() < 0.55
    assert len({tuple(d.tolist()) for d in drops}) > 5


def test_without_dropout_each_side_has_its_caption(records, jsonl, loader, encoder):
    rows = records(3, rejected_prompt=lambda i: ["short", None, "somewhat longer"][i])
    batch = loader(Pairs(path=jsonl(rows), resolution=16)).batch([0, 1, 2], 0)
    for side, captions in (
        ("chosen", [r["prompt"] for r in rows]),
        ("rejected", ["short", rows[1]["prompt"], "somewhat longer"]),
    ):
        cond = getattr(batch.cond, side)
        assert cond.text.shape[1] == max(map(len, captions)) + 1
        for k, caption in enumerate(captions):
            states = encoder.encode_prompt(caption)
            n = len(caption) + 1
            assert torch.equal(cond.text[k, :n], states["text"])
            assert not cond.text[k, n:].any()
            assert cond.mask[k].tolist() == [True] * n + [False] * (cond.text.shape[1] - n)
            assert torch.equal(cond.pooled[k], states["pooled"])


def test_one_caption_is_stacked_once(records, jsonl, loader):
    batch = loader(Pairs(path=jsonl(records(2)), resolution=16)).batch([0, 1], 0)
    assert batch.cond.chosen.text is batch.cond.rejected.text
    assert batch.cond.chosen.extra["size"] is not batch.cond.rejected.extra["size"]


def test_states_of_one_length_need_no_mask(records, jsonl, loader):
    batch = loader(Pairs(path=jsonl(records(2)), resolution=16), encoder=TinyEncoder(masked=False)).batch([0, 1], 0)
    assert batch.cond.chosen.text.shape == (2, 16, 6)
    assert batch.cond.chosen.mask is None


@pytest.mark.parametrize("cached", [True, False])
def test_a_side_that_is_not_used_is_none(records, jsonl, loader, cached):
    encoder = TinyEncoder()
    pairs = loader(Pairs(path=jsonl(records(2)), resolution=16), sides=("chosen",), encoder=encoder, cached=cached)
    batch = pairs.batch([0, 1], 0)
    assert batch.latent.rejected is None
    assert batch.cond.rejected is None
    assert encoder.images == 2
    assert batch.to("cpu", torch.float64).latent.chosen.dtype == torch.float64


@pytest.mark.parametrize("cached", [True, False])
def test_broken_rows_are_left_out_counted_and_named(records, jsonl, loader, tmp_path, caplog, cached):
    rows = [{"prompt": None, "chosen": "img/none.png", "rejected": "img/none.png"}, *records(5)]
    path = jsonl(rows)
    (tmp_path / "table/img/chosen2.png").write_bytes(b"no image")
    (tmp_path / "table/img/rejected0.png").unlink()
    pairs = loader(Pairs(path=path, resolution=16), cached=cached)
    assert [group.tolist() for group in pairs.groups] == [[1, 3, 4]]
    assert "2 of 5 pairs" in caplog.text
    assert "row 3: chosen image" in caplog.text  # the row of the file, which has one without a prompt above
    assert "row 1: rejected image" in caplog.text
    assert "No such file" in caplog.text


def test_a_table_of_broken_images_is_the_users_error(jsonl, loader):
    rows = [{"prompt": "a", "chosen": "img/none.png", "rejected": "img/none.png"}]
    with pytest.raises(UserError, match=r"None of the pairs of .* has usable images.*none.png: No such file"):
        loader(Pairs(path=jsonl(rows), resolution=16))


def test_batches_of_buckets_have_one_size(records, jsonl, loader):
    rows = records(12, size=lambda i: [(40, 20), (20, 40), (30, 30)][i % 3])
    pairs = loader(Pairs(path=jsonl(rows), resolution=32, buckets=True))
    schedule = Schedule(4, pairs.groups, micro_steps=2, micro_batch=2)
    shapes = set()
    for update in pairs.updates(schedule, 0, schedule.updates_per_epoch):
        sizes = {tuple(batch.latent.chosen.shape[-2:]) for batch in update}
        assert sizes == {tuple(batch.latent.rejected.shape[-2:]) for batch in update}
        assert len(sizes) == 1
        shapes |= sizes
    assert shapes == {(8, 8), (6, 11), (11, 6)}


def test_both_images_of_a_pair_share_the_bucket_of_the_chosen_one(records, jsonl, loader, picture, tmp_path):
    rows = records(2)
    picture(tmp_path / "table/img/rejected0.png", 20, 60)
    batch = loader(Pairs(path=jsonl(rows), resolution=32, buckets=True)).batch([0], 0)
    assert batch.latent.chosen.shape == batch.latent.rejected.shape
    assert batch.cond.rejected.extra["size"][0].tolist()[:2] == [60, 20]
    assert torch.equal(batch.cond.rejected.extra["size"][0, 4:], batch.cond.chosen.extra["size"][0, 4:])


def test_held_out_batches_are_fixed_whole_and_shared_out(records, jsonl, loader):
    rows = records(11, size=lambda i: (40, 20) if i % 4 == 0 else (20, 20))
    pairs = loader(Pairs(path=jsonl(rows), resolution=16, buckets=True))
    batches = list(pairs.held_out(2, limit=9))
    assert sorted(i for batch in batches for i in batch.index.tolist()) == list(range(9))
    assert all(batch.size <= 2 for batch in batches)
    assert all(same(a, b) for a, b in zip(batches, pairs.held_out(2, limit=9), strict=True))
    assert same(batches[0], pairs.batch(batches[0].index, 0))
    shared = [batch for rank in range(3) for batch in pairs.held_out(2, limit=9, rank=rank, world=3)]
    assert sorted(tuple(b.index.tolist()) for b in shared) == sorted(tuple(b.index.tolist()) for b in batches)


def test_the_identity_does_not_depend_on_how_many_rows_are_read_at_a_time(records, jsonl, loader, monkeypatch):
    source = Pairs(path=jsonl(records(7)), resolution=16)
    monkeypatch.setattr(batches, "HASHED_ROWS", 4)
    found = set()
    for rows in (1, 2, 4):
        monkeypatch.setattr(batches, "PART_ROWS", rows)
        monkeypatch.setattr(Table.in_parts, "__defaults__", (rows,))
        found.add(loader(source).identity)
    assert len(found) == 1


@pytest.mark.parametrize(("bytes_ahead", "most"), [(2**29, 6), (0, 2), (3000, 4)])
def test_micro_batches_are_read_ahead_as_far_as_they_are_small(records, jsonl, loader, monkeypatch, bytes_ahead, most):
    """An update has four micro-batches of about 1,500 bytes; so many are read while the second one is computed."""
    pairs = loader(Pairs(path=jsonl(records(16)), resolution=16))
    monkeypatch.setattr(reading, "AHEAD", bytes_ahead)
    make, made = pairs.batch, []
    monkeypatch.setattr(pairs, "batch", lambda rows, epoch: made.append(rows) or make(rows, epoch))
    schedule = Schedule(4, pairs.groups, micro_steps=4, micro_batch=1)
    updates = pairs.updates(schedule, 0, 4)
    coming = iter(next(updates))
    next(coming), next(coming)
    until = time.monotonic() + 5
    while len(made) < most and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(made) == most
    assert [len(batches) for batches in updates] == [4, 4, 4] and len(made) == 16


def test_micro_batches_come_once_in_order_and_are_made_anew_when_they_are_asked_for_again(records, jsonl, loader):
    pairs = loader(Pairs(path=jsonl(records(12)), resolution=16), dropout=0.5)
    schedule = Schedule(4, pairs.groups, micro_steps=3, micro_batch=2)
    for update, parts in chain(
        enumerate(pairs.updates(schedule, 0, 2)), enumerate(list(pairs.updates(schedule, 0, 2)))
    ):
        wanted = [pairs.batch(rows, 0) for rows in schedule.indices(update, 0)]
        begun = iter(parts)
        next(begun), next(begun)
        for found in (list(parts), list(parts), [parts[number] for number in range(3)]):
            assert all(same(x, y) for x, y in zip(found, wanted, strict=True))
        assert same(parts[-1], wanted[2])


def test_a_large_update_is_not_held_as_a_whole(records, jsonl, loader, monkeypatch):
    """Of 12 micro-batches there are at most the first one, the one that is learned from, and those read ahead."""
    pairs = loader(Pairs(path=jsonl(records(24)), resolution=16))
    monkeypatch.setattr(reading, "AHEAD", 3000)
    alive, make = weakref.WeakSet(), pairs.batch
    monkeypatch.setattr(pairs, "batch", lambda rows, epoch: seen(alive, make(rows, epoch)))
    most = 0
    for parts in pairs.updates(Schedule(4, pairs.groups, micro_steps=12, micro_batch=1), 0, 2):
        for _ in parts:
            most = max(most, len(alive))
    assert most <= 6


def seen(alive, batch):
    alive.add(batch.latent.chosen)
    return batch
