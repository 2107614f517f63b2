"""Encodings on disk: the same bits as without a cache, whatever interrupts the writing, and never stale."""

import contextlib
import dataclasses
import json
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from tiny_encoder import TinyEncoder

from diffpo.data import Pairs, load_splits
from diffpo.data.cache import EncodingCache, LiveEncodings, encode_row
from diffpo.disk import shards
from diffpo.errors import UserError


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 4)


@pytest.fixture
def table(records, jsonl, tmp_path):
    """Ten pairs, one with a broken image."""
    path = jsonl(records(10))
    (tmp_path / "table/img/rejected5.png").write_bytes(b"no image")
    return path


def filled(source, encoder, table=None, **kwargs):
    made = EncodingCache(table or load_splits(source).train, source, encoder, seed=0, **kwargs)
    made.encode_shards()
    return made


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("geometry", [{}, {"crop": "random", "flip": True, "buckets": True}], ids=["plain", "moving"])
def test_cached_and_live_encodings_are_the_same_bits(table, encoder, dtype, geometry):
    source = Pairs(path=table, resolution=16, cache_dtype=dtype, **geometry)
    pairs = load_splits(source).train
    stored, live = filled(source, encoder).open(), LiveEncodings(pairs, source, encoder, seed=0)
    assert stored.broken == live.broken
    assert list(stored.broken) == [5]
    assert "rejected5.png: not an image" in stored.broken[5]
    assert (stored.targets == live.targets).all()
    for i in set(range(10)) - {5}:
        a, b, c = stored.images(i), live.images(i), encode_row(pairs.rows[i], i, encoder, source, 0)
        assert (
            a.keys()
            == b.keys()
            == c.keys()
            == {f"{s}_{x}" for s in ("chosen", "rejected") for x in ("mean", "std", "size")}
        )
        for name in a:
            assert a[name].dtype == b[name].dtype == (torch.int64 if name.endswith("size") else getattr(torch, dtype))
            assert torch.equal(a[name], b[name])
            assert torch.equal(a[name], c[name])
    for prompt in ["", *pairs.column("prompt")]:
        a, b = stored.text(prompt), live.text(prompt)
        assert a.keys() == b.keys() == {"text", "pooled", "mask"}
        assert all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


def test_each_prompt_is_encoded_once_and_each_image_once(table):
    encoder = TinyEncoder()
    source = Pairs(path=table, resolution=16)
    made = filled(source, encoder)
    assert (encoder.images, encoder.prompts) == (2 * 9, 4)  # 9 whole pairs; three prompts and the empty one
    made.encode_shards()
    assert (encoder.images, encoder.prompts) == (2 * 9, 4)


def test_a_side_that_is_not_used_is_not_looked_at(table):
    encoder = TinyEncoder()
    source = Pairs(path=table, resolution=16)
    stored = filled(source, encoder, sides=("chosen",)).open()
    assert encoder.images == 10
    assert stored.broken == {}  # only a rejected image is
    assert stored.images(5).keys() == {"chosen_mean", "chosen_std", "chosen_size"}


def assert_finishes_as_if_never_interrupted(source, tmp_path):
    """Resume the cache of `source`: only unfinished shards are encoded, and the files are the usual ones."""
    encoder = TinyEncoder()
    resumed = EncodingCache(load_splits(source).train, source, encoder, seed=0)
    with pytest.raises(UserError, match="of 4 encoded files are missing"):
        resumed.open()
    assert list(resumed.folder.glob(".*")), "the interruption must leave an unfinished file"
    unfinished = [shard for shard in resumed.shards if shard.kind == "images" and not shard.path.exists()]
    resumed.encode_shards()
    assert encoder.images == 2 * len({i for shard in unfinished for i in shard.entries} - {5})

    straight = filled(dataclasses.replace(source, cache_dir=str(tmp_path / "straight")), TinyEncoder())
    assert contents(resumed.folder) == contents(straight.folder)
    assert resumed.open().broken == straight.open().broken


@pytest.mark.parametrize("kill_at", [0, 3, 15])
def test_a_killed_encoding_continues_and_ends_the_same(table, tmp_path, kill_at):
    source = Pairs(path=table, resolution=16, cache_dir=str(tmp_path / "killed"))
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            filled(source, TinyEncoder(kill_at=kill_at))
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert_finishes_as_if_never_interrupted(source, tmp_path)


@pytest.mark.parametrize("lost", [1, 2, 4])
def test_any_unfinished_shards_are_made_again(table, tmp_path, lost):
    source = Pairs(path=table, resolution=16, cache_dir=str(tmp_path / "torn"))
    for path in sorted(filled(source, TinyEncoder()).folder.glob("*.arrow"))[-lost:]:
        path.with_name(f".{path.name}.host-1").write_bytes(path.read_bytes()[:100])
        path.unlink()
    assert_finishes_as_if_never_interrupted(source, tmp_path)


def test_processes_share_the_work_and_write_the_same(table, tmp_path):
    source = Pairs(path=table, resolution=16, cache_dir=str(tmp_path / "shared"))
    encoders = [TinyEncoder() for _ in range(3)]
    caches = [EncodingCache(load_splits(source).train, source, encoder, seed=0) for encoder in encoders]
    for rank in (2, 0):
        caches[rank].encode_shards(rank=rank, world=3)
    assert not caches[0].complete
    caches[1].encode_shards(rank=1, world=3)
    assert caches[0].complete
    assert [encoder.images for encoder in encoders] == [8, 6, 4]
    alone = filled(dataclasses.replace(source, cache_dir=str(tmp_path / "alone")), TinyEncoder())
    assert contents(caches[0].folder) == contents(alone.folder)


SETTINGS = [
    {"resolution": 20},
    {"crop": "random"},
    {"flip": True},
    {"buckets": True},
    {"cache_dtype": "float16"},
    {"limit": 9},
]


@pytest.mark.parametrize("change", SETTINGS, ids=lambda change: next(iter(change)))
def test_a_changed_setting_has_another_cache(table, encoder, change):
    source = Pairs(path=table, resolution=16)
    other = dataclasses.replace(source, **change)
    folders = [EncodingCache(load_splits(s).train, s, encoder, seed=0).folder for s in (source, other)]
    assert folders[0] != folders[1]


def test_settings_that_change_no_encoding_share_the_cache(table, encoder):
    source = Pairs(path=table, resolution=16)
    pairs = load_splits(source).train
    other = dataclasses.replace(source, caption_dropout=0.5)
    folders = {EncodingCache(pairs, s, encoder, seed=seed).folder for s in (source, other) for seed in (0, 1)}
    assert len(folders) == 1
    moving = dataclasses.replace(source, flip=True)
    assert EncodingCache(pairs, moving, encoder, seed=0).folder != EncodingCache(pairs, moving, encoder, seed=1).folder


def test_other_networks_files_or_sides_have_another_cache(table, encoder, tmp_path):
    source = Pairs(path=table, resolution=16)

    def folder(encoder=encoder, **kwargs):
        return EncodingCache(load_splits(source).train, source, encoder, seed=0, **kwargs).folder

    first = folder()
    assert folder() == first
    assert folder(TinyEncoder("other")) != first
    assert folder(sides=("chosen",)) != first
    (tmp_path / "table/img/rejected5.png").write_bytes((tmp_path / "table/img/rejected6.png").read_bytes())
    assert folder() != first


def test_the_cache_says_what_it_is_for(table, encoder):
    made = filled(Pairs(path=table, resolution=16), encoder)
    key = json.loads((made.folder / "key.json").read_text())
    assert (key["encoder"], key["resolution"], key["dtype"]) == ("tiny", 16, "float32")


def test_only_the_rows_asked_for_are_loaded(records, jsonl, encoder):
    import pyarrow

    source = Pairs(path=jsonl(records(12)), resolution=256)
    made = filled(source, encoder)
    size = sum(path.stat().st_size for path in made.folder.glob("images-*"))
    before = pyarrow.total_allocated_bytes()
    stored = made.open()
    stored.images(7)
    assert size > 12 * 2 * 2 * 4 * 64 * 64 * 4
    assert pyarrow.total_allocated_bytes() - before < size / 12


def test_a_full_disk_is_the_users_error_and_leaves_no_half_file(table, encoder, tmp_path):
    source = Pairs(path=table, resolution=16)
    made = EncodingCache(load_splits(source).train, source, encoder, seed=0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(UserError, match=r"The disk is full: .*make room .*data.cache_dtype=float16"):
            made.encode_shards()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in made.folder.iterdir()] == ["key.json"]
    made.encode_shards()
    assert made.complete


def test_a_place_that_cannot_be_written_is_the_users_error(table, encoder):
    source = Pairs(path=table, resolution=16, cache_dir=table)  # a file, not a folder
    with pytest.raises(UserError, match=r"cannot be made \(Not a directory\): set data.cache_dir"):
        filled(source, encoder)


def test_a_damaged_shard_is_named(table, encoder):
    made = filled(Pairs(path=table, resolution=16), encoder)
    victim = next(made.folder.glob("text-*"))
    victim.write_bytes(victim.read_bytes()[:50])
    with pytest.raises(UserError, match=f"{victim.name} is damaged"):
        made.open()


def test_numbers_that_the_precision_cannot_hold_are_refused(table):
    class Loud(TinyEncoder):
        def encode_prompt(self, prompt):
            return {name: x * 1e5 if name == "text" else x for name, x in super().encode_prompt(prompt).items()}

    filled(Pairs(path=table, resolution=16), Loud())
    with pytest.raises(UserError, match=r"not finite in float16. Set data.cache_dtype=float32"):
        filled(Pairs(path=table, resolution=16, cache_dtype="float16"), Loud())


def test_the_encoder_must_take_the_resolution(table, encoder):
    source = Pairs(path=table, resolution=18)
    with pytest.raises(UserError, match="Use 16 or 20"):
        EncodingCache(load_splits(source).train, source, encoder, seed=0)


@pytest.mark.parametrize("cache", [True, False])
def test_captions_that_the_encoder_cuts_are_counted_once_per_run(records, jsonl, caplog, cache):
    """16 letters with the mark before them: two of the five different captions are longer."""
    texts = ["short", "x" * 15, "x" * 16, "a much longer caption", "short"]
    table = load_splits(Pairs(path=jsonl(records(5, rejected_prompt=lambda i: texts[i])))).train
    source, encoder = Pairs(path=table.path, resolution=8), TinyEncoder(masked=False)
    long = sum(len(prompt) + 1 > 16 for prompt in {*table.column("prompt"), *texts})
    for _ in range(2):  # also when everything is encoded already
        caplog.clear()
        if cache:
            made = EncodingCache(table, source, encoder, seed=0)
            made.encode_shards(rank=0, world=2)
            made.encode_shards(rank=1, world=2)
        else:
            LiveEncodings(table, source, encoder, seed=0, rank=0)
            LiveEncodings(table, source, encoder, seed=0, rank=1)
        assert [record.getMessage() for record in caplog.records if "longer" in record.getMessage()] == [
            f"{table.path}: {long} of 7 different captions are longer than the 16 tokens that a text encoder reads, "
            "and are cut there."
        ]


def test_captions_that_fit_are_not_spoken_of(table, caplog):
    filled(Pairs(path=table, resolution=8), TinyEncoder())
    assert "longer" not in caplog.text
