"""Encoded pairs in shards: which rows an update takes, what the shards hold, and where they lie."""

import contextlib
import os
import shutil
import signal
from dataclasses import replace

import fsspec
import numpy as np
import pytest
import torch
from tiny_encoder import TinyEncoder

from diffpo.data import Pairs, load_splits
from diffpo.data import shards as shards_module
from diffpo.data.cache import EncodingCache
from diffpo.data.loader import PairLoader
from diffpo.data.records import Counts
from diffpo.data.sharding import Sharding, recipe_of
from diffpo.data.shards import Index, Shard, ShardSplit
from diffpo.data.storage import Storage
from diffpo.data.stream_plan import StreamSchedule
from diffpo.data.streamed import StreamLoader, check_columns, check_recipe
from diffpo.errors import UserError


def schedule(shards, window=4, seed=3, world=1, micro_steps=1, micro_batch=8):
    """A plan over groups of shards with so many rows."""
    ends = np.cumsum([sum(rows) for rows in shards]).tolist()
    groups = tuple(range(start, end) for start, end in zip([0, *ends], ends, strict=False))
    rows = tuple(np.array(each) for each in shards)
    return StreamSchedule(seed, groups, world, micro_steps, micro_batch, shards=rows, window=window)


THOUSANDS = [[500] * 150 + [333], [200] * 100, [7, 9, 5000]]
"""Three sizes of images, 100,349 rows in all."""


def test_every_row_comes_once_in_an_epoch_whatever_the_processes():
    """100,349 rows, three epochs, one process or four with micro-batches."""
    alone, four = schedule(THOUSANDS, micro_batch=32), schedule(THOUSANDS, world=4, micro_steps=2, micro_batch=4)
    assert alone.updates_per_epoch == sum(sum(rows) // 32 for rows in THOUSANDS)
    orders = []
    for epoch in range(3):
        updates = range(epoch * alone.updates_per_epoch, (epoch + 1) * alone.updates_per_epoch)
        batches = [alone.indices(update, 0).ravel() for update in updates]
        rows = np.concatenate(batches)
        assert len(np.unique(rows)) == len(rows) == 32 * alone.updates_per_epoch
        orders.append(rows.tolist())
        for update, batch in list(zip(updates, batches, strict=True))[::97]:
            shared = [four.indices(update, rank) for rank in range(4)]
            assert np.stack(shared, axis=1).ravel().tolist() == batch.tolist()
            assert any(batch.min() in group and batch.max() in group for group in alone.groups), "one size"
    assert orders[0] != orders[1] != orders[2]
    assert np.mean(np.diff(orders[0]) == 1) < 0.01, "rows that lie together do not come together"


def test_an_update_asks_for_few_shards_and_what_comes_is_known():
    plan = schedule([[100] * 50], window=5, micro_batch=20)
    for update in range(plan.updates_per_epoch):
        asked = set((plan.indices(update, 0).ravel() // 100).tolist())
        assert len(asked) <= 10  # of the one window, or of two where one ends
        assert asked <= set(plan.coming(update)) and len(plan.coming(update)) <= 15


def test_too_few_rows_are_refused():
    with pytest.raises(UserError, match="fewer than one effective batch of 8"):
        schedule([[3, 4]])


def written(path, place, encoder=None, *, rows=4, **settings):
    """Encode a table into shards."""
    source = Pairs(path=path, resolution=16, **settings)
    encoder = encoder or TinyEncoder()
    storage, table = Storage(str(place)), load_splits(source).train
    recipe = recipe_of(source, encoder, 0)
    sharding = Sharding(table, source, encoder, storage, "train", 0, recipe, shard_rows=rows, shown=False)
    sharding.write()
    index = Index(recipe, tuple(table.rows.column_names), {"train": sharding.finish()})
    index.write(storage)
    return source, table, index


def opened(place, source, **how):
    storage = Storage(str(place))
    how = {"seed": 5, "caption_dropout": 0.3} | how
    return StreamLoader(storage, Index.read(storage), "train", source, **how)


def assert_equal(a, b):
    for side in ("chosen", "rejected"):
        assert torch.equal(getattr(a.latent, side), getattr(b.latent, side))
        one, other = getattr(a.cond, side), getattr(b.cond, side)
        assert torch.equal(one.text, other.text) and torch.equal(one.pooled, other.pooled)
        assert torch.equal(one.extra["size"], other.extra["size"])
    assert torch.equal(a.preference, b.preference) and torch.equal(a.index, b.index)
    assert (a.weight is None and b.weight is None) or torch.equal(a.weight, b.weight)


@pytest.fixture
def table(records, jsonl):
    return jsonl(records(22, preference=lambda i: 1 - i / 100, weight=lambda i: i / 7))


@pytest.mark.parametrize("geometry", [{}, {"crop": "random", "flip": True}], ids=["plain", "moving"])
def test_batches_are_those_of_the_cache(table, tmp_path, geometry):
    """Bit for bit: latents with their draws, captions, dropped ones, sizes, labels, weights."""
    encoder = TinyEncoder(masked=False)
    source, pairs, index = written(table, tmp_path / "shards", encoder, **geometry)
    assert [shard.rows for shard in index.splits["train"].shards] == [4, 4, 4, 4, 4, 2]
    cache = EncodingCache(pairs, source, encoder, seed=0)
    cache.fill()
    cached = PairLoader(pairs, cache.open(), seed=5, caption_dropout=0.3)
    streamed = opened(tmp_path / "shards", source)
    for rows in ([0, 1, 2], [21, 3, 17, 9]):
        for epoch in (0, 1):
            assert_equal(streamed.batch(rows, epoch), cached.batch(rows, epoch))


def test_shards_of_other_rows_or_settings_are_not_taken(table, tmp_path):
    """Of the same table, cut otherwise or encoded by others."""
    for rows, found in ((8, [8, 8, 6]), (11, [11, 11])):
        index = written(table, tmp_path / "shards", rows=rows)[2]
        assert [shard.rows for shard in index.splits["train"].shards] == found
    encoder = TinyEncoder("another")
    written(table, tmp_path / "shards", encoder, rows=11)
    assert encoder.images >= 2 * 22


def test_what_encodings_and_their_order_depend_on_is_known():
    """A seed where something is drawn; the digests of all shards, in their order."""
    recipes = [
        recipe_of(Pairs(path="x", **how), TinyEncoder(), seed)
        for how in ({}, {"flip": True}, {"crop": "random"})
        for seed in (0, 1)
    ]
    assert recipes[0] == recipes[1] and recipes[2] != recipes[3] and recipes[4] != recipes[5]
    one, other = (Shard("train/00000.arrow", 4, (1, 16, 16), digest) for digest in "ab")
    splits = [(one, other), (other, one), (one, one), (replace(one, rows=3), other)]
    assert len({ShardSplit(shards, Counts(8)).identity for shards in splits}) == 4


def test_a_broken_image_leaves_its_shard_and_sizes_have_their_own(records, jsonl, tmp_path):
    path = jsonl(records(12, size=lambda i: [(24, 20), (20, 40)][i % 2]))
    (tmp_path / "table/img/rejected5.png").write_bytes(b"no image")
    source, _, index = written(path, tmp_path / "shards", TinyEncoder(masked=False), buckets=True)
    shards = index.splits["train"].shards
    assert [(shard.rows, shard.broken) for shard in shards] == [(4, 0), (2, 0), (3, 1), (2, 0)]
    assert shards[0].size == shards[1].size != shards[2].size == shards[3].size
    loader = opened(tmp_path / "shards", source)
    assert (len(loader.broken), [len(group) for group in loader.groups]) == (1, [6, 5])
    seen = [row for batches in loader.updates(loader.schedule(1, 1, 3), 0, 3) for row in batches[0].index.tolist()]
    assert len(set(seen)) == 9 and max(seen) < 11


def test_a_killed_encoding_goes_on(table, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    source, _, index = written(table, straight)
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            written(table, killed, TinyEncoder(kill_at=21))
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    with pytest.raises(UserError, match=r"has no index.json of encoded pairs"):
        opened(killed, source)
    encoder = TinyEncoder()
    assert written(table, killed, encoder)[2] == index
    assert encoder.images == 44 - 16, "two shards of four pairs were there"
    files = sorted(file.relative_to(straight) for file in straight.rglob("*.arrow"))
    assert all((straight / file).read_bytes() == (killed / file).read_bytes() for file in files)


@pytest.fixture
def store():
    """The address of an object store: fsspec's own, in memory."""
    yield "memory://encoded"
    fsspec.filesystem("memory").rm("/encoded", recursive=True)


def test_shards_of_a_store_are_copied_a_few_at_a_time(table, tmp_path, store, monkeypatch):
    """Two epochs of two processes, of which the second begins anew after a stop: no row lost, none doubled."""
    monkeypatch.setattr(shards_module, "KEPT", 4)
    encoder = TinyEncoder(masked=False)
    source, _, index = written(table, tmp_path / "shards", encoder, encoded_window=1)
    assert written(table, store, encoder, encoded_window=1)[2] == index, "it can be written there, too"
    here, seen = opened(tmp_path / "shards", source), []
    for rank in (0, 1):
        for start, stop in ((0, 7), (7, 20)):
            loader = opened(store, source, rank=rank)
            loader._shards._kept = 4
            plan = loader.schedule(2, 1, 1)
            assert plan.updates_per_epoch == 11
            for update, (batch,) in enumerate(loader.updates(plan, start, stop, rank=rank), start):
                assert_equal(batch, here.batch(batch.index, update // 11))
                seen.append((update // 11, *batch.index.tolist()))
            loader._shards._pool.shutdown()  # what is still being copied is there, or is removed
            left_behind = loader._shards._home / "train" / f"{stop:05d}0.arrow"
            left_behind.touch()
    assert len(set(seen)) == len(seen) == 40 and {row for epoch, row in seen if not epoch} == set(range(22))
    copies = [[*home.rglob("*.arrow")] for home in (tmp_path / "diffpo-cache/streams").iterdir()]
    assert list(map(len, copies)) == [4 + 1] * 2, "of six, in each process; and what was left behind at last"


def test_a_place_of_other_settings_or_labels_is_refused(table, tmp_path, records, jsonl):
    source, _, index = written(table, tmp_path / "shards")
    with pytest.raises(UserError, match="resolution is 20 here and 16 there"):
        check_recipe(index, recipe_of(Pairs(path=table, resolution=20), TinyEncoder(), 0), {}, "shards")
    with pytest.raises(UserError, match="encoder is 'other' here"):
        check_recipe(index, recipe_of(source, TinyEncoder("other"), 0), {}, "shards")
    with pytest.raises(UserError, match="needs the columns segments"):
        check_columns(index, "train", frozenset({"segments"}), "shards", refuses_opposite=False)
    opposite = jsonl(records(8, preference=lambda i: 0.2), "opposite.jsonl")
    other = written(opposite, tmp_path / "opposite")[2]
    with pytest.raises(UserError, match=r"8 rows of there have a preference below 0\.5"):
        check_columns(other, "train", frozenset(), "there", refuses_opposite=True)
    shutil.copy(tmp_path / "shards/train/00001.arrow", tmp_path / "half")
    (tmp_path / "shards/train/00001.arrow").write_bytes((tmp_path / "half").read_bytes()[:500])
    with pytest.raises(UserError, match=r"00001.arrow is not what `diffpo data encode` wrote there"):
        opened(tmp_path / "shards", source).batch([5], 0)
