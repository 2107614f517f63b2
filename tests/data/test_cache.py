"""Encodings on disk: the same bits as without a cache, whatever interrupts the writing, never stale, never twice."""

import contextlib
import dataclasses
import os
import resource
import shutil
import signal

import pytest
import torch
from PIL import Image
from tiny_encoder import TinyEncoder

from diffpo.data import Pairs, load_splits
from diffpo.data.cache import EncodingCache
from diffpo.data.encode import LiveEncodings
from diffpo.disk import rows as store
from diffpo.errors import UserError


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(store, "ROWS_PER_FILE", 8)
    monkeypatch.setattr(store.RowStore.__init__, "__defaults__", (None, 8))


@pytest.fixture
def table(records, jsonl, tmp_path):
    """Ten pairs, one with a broken image."""
    path = jsonl(records(10))
    (tmp_path / "table/img/rejected5.png").write_bytes(b"no image")
    return path


def filled(source, encoder, table=None, *, seed=0, **kwargs):
    made = EncodingCache(table or load_splits(source).train, source, encoder, seed=seed, **kwargs)
    made.fill()
    return made


def encoded(source, **kwargs):
    """How many images and texts a start with these settings encodes."""
    encoder = TinyEncoder()
    filled(source, encoder, **kwargs)
    return encoder.images, encoder.prompts


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
        a, b = stored.images(i), live.images(i)
        assert a.keys() == b.keys() == {f"{s}_{x}" for s in ("chosen", "rejected") for x in ("mean", "std", "size")}
        for name in a:
            assert a[name].dtype == b[name].dtype == (torch.int64 if name.endswith("size") else getattr(torch, dtype))
            assert torch.equal(a[name], b[name])
    for prompt in ["", *pairs.column("prompt")]:
        a, b = stored.text(prompt), live.text(prompt)
        assert a.keys() == b.keys() == {"text", "pooled", "mask"}
        assert all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


def test_each_prompt_is_encoded_once_and_each_image_once(table):
    source = Pairs(path=table, resolution=16)
    assert encoded(source) == (19, 4)  # the broken one is none; three prompts and the empty one
    assert encoded(source) == (0, 0)


def test_a_side_that_is_not_used_is_not_looked_at(table):
    encoder = TinyEncoder()
    stored = filled(Pairs(path=table, resolution=16), encoder, sides=("chosen",)).open()
    assert encoder.images == 10
    assert stored.broken == {}  # only a rejected image is
    assert stored.images(5).keys() == {"chosen_mean", "chosen_std", "chosen_size"}


def same_encodings(source, **kwargs):
    """Whether what is stored for a table is what encoding it gives."""
    pairs = load_splits(source).train
    stored = filled(source, TinyEncoder(), pairs, **kwargs).open()
    live = LiveEncodings(pairs, source, TinyEncoder(), seed=kwargs.get("seed", 0))
    rows = set(range(len(pairs))) - stored.broken.keys()
    return stored.broken == live.broken and all(
        torch.equal(x, stored.images(i)[name]) for i in rows for name, x in live.images(i).items()
    )


@pytest.mark.parametrize(("kill_at", "done", "left"), [(0, 0, 19), (3, 0, 19), (15, 16, 4)])
def test_a_killed_encoding_continues_and_ends_the_same(table, tmp_path, kill_at, done, left):
    source = Pairs(path=table, resolution=16, cache_dir=str(tmp_path / "killed"))
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            filled(source, TinyEncoder(kill_at=kill_at))
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    resumed = EncodingCache(load_splits(source).train, source, TinyEncoder(), seed=0)
    with pytest.raises(UserError, match=f"{24 - done} encodings are missing"):
        resumed.open()
    assert encoded(source) == (left, 4)
    assert same_encodings(source)
    assert not list((tmp_path / "killed").rglob(".*")), "the kill was swept"


def test_processes_share_the_work(table, tmp_path):
    source = Pairs(path=table, resolution=16, cache_dir=str(tmp_path / "shared"))
    encoders = [TinyEncoder() for _ in range(3)]
    caches = [EncodingCache(load_splits(source).train, source, e, seed=0, rank=i) for i, e in enumerate(encoders)]
    for rank in (2, 0, 1):
        caches[rank].fill(world=3)
    assert [encoder.images for encoder in encoders] == [8, 7, 4]
    assert same_encodings(source)


SETTINGS = [
    {"resolution": 20},
    {"crop": "random"},
    {"flip": True},
    {"buckets": True},
    {"cache_dtype": "float16"},
    {"crop": "random", "flip": True},
    {"flip": True, "buckets": True},
]


@pytest.mark.parametrize("change", SETTINGS, ids=lambda change: "+".join(change))
@pytest.mark.parametrize(
    "before", [{}, {"flip": True}, {"crop": "random"}, {"buckets": True}], ids=lambda x: "".join(x)
)
def test_a_changed_setting_reads_nothing_that_is_stale(records, jsonl, before, change):
    """Whatever was encoded before with other settings, images and seeds in the same folder."""
    sizes = [(24, 20), (20, 40), (48, 20)]
    source = Pairs(path=jsonl(records(6, size=lambda i: sizes[i % 3])), resolution=16)
    filled(dataclasses.replace(source, **before), TinyEncoder())
    filled(dataclasses.replace(source, **before), TinyEncoder(), seed=1)
    assert same_encodings(dataclasses.replace(source, **change))
    assert same_encodings(dataclasses.replace(source, **change), seed=1)


def test_the_seed_counts_where_something_is_drawn(table):
    source = Pairs(path=table, resolution=16)
    encoded(source)
    assert encoded(source, seed=1) == (0, 0)
    for moving in ({"crop": "random"}, {"flip": True}):
        moved = dataclasses.replace(source, **moving)
        assert encoded(moved)[0] == 19
        assert encoded(moved, seed=1)[0] > 4  # a flip of a row may be the same under two seeds


def test_other_networks_read_nothing_of_each_other(table):
    source = Pairs(path=table, resolution=16)
    filled(source, TinyEncoder())
    other = TinyEncoder("other")
    filled(source, other)
    assert (other.images, other.prompts) == (19, 4)


def test_nothing_is_encoded_again_for_another_table_order_limit_method_or_place(records, jsonl, tmp_path):
    rows = records(8)
    source = Pairs(path=jsonl(rows), resolution=16)
    assert encoded(source) == (16, 4)
    for change in ({"limit": 3}, {"caption_dropout": 0.5}, {"validation_fraction": 0.4}):
        assert encoded(dataclasses.replace(source, **change)) == (0, 0)
    assert encoded(source, sides=("chosen",)) == (0, 0)
    assert encoded(dataclasses.replace(source, path=jsonl(rows[::-1], "reversed.jsonl"))) == (0, 0)
    shutil.copytree(tmp_path / "table", tmp_path / "moved")
    os.utime(tmp_path / "moved/img/chosen1.png", (1, 1))
    assert encoded(dataclasses.replace(source, path=str(tmp_path / "moved/pairs.jsonl"))) == (0, 0)
    new = {"prompt": "a new one", "chosen": "img/new.png", "rejected": "img/chosen3.png"}
    Image.new("RGB", (24, 20), "red").save(tmp_path / "table/img/new.png")
    assert encoded(dataclasses.replace(source, path=jsonl([new, *rows], "more.jsonl"))) == (1, 1)
    assert same_encodings(dataclasses.replace(source, path=str(tmp_path / "table/more.jsonl")))


def test_an_image_that_changed_is_encoded_again(records, jsonl, tmp_path):
    source = Pairs(path=jsonl(records(4)), resolution=16)
    encoded(source)
    Image.new("RGB", (24, 20), "red").save(tmp_path / "table/img/chosen2.png")
    assert encoded(source) == (1, 0) and same_encodings(source)


def test_an_image_that_is_not_there_yet_is_encoded_when_it_is(records, jsonl, tmp_path):
    source = Pairs(path=jsonl(records(4)), resolution=16)
    image = tmp_path / "table/img/chosen2.png"
    content = image.read_bytes()
    image.unlink()
    broken = filled(source, TinyEncoder()).open().broken
    assert list(broken) == [2] and "chosen2.png: No such file" in broken[2]
    image.write_bytes(content)
    assert encoded(source) == (1, 0) and filled(source, TinyEncoder()).open().broken == {}


def test_a_start_reads_no_image_that_was_read_before(table, monkeypatch):
    source = Pairs(path=table, resolution=16)
    filled(source, TinyEncoder())

    def read(path):
        raise AssertionError(f"{path} is read again")

    monkeypatch.setattr("diffpo.data.contents.read_bytes", read)
    monkeypatch.setattr("diffpo.data.images.open_footage", read)
    assert list(filled(source, TinyEncoder()).open().broken) == [5]


def test_images_inside_a_table_are_remembered_too(records, jsonl, tmp_path, monkeypatch):
    import pyarrow
    from pyarrow import parquet

    rows = records(5)
    cells = [row | {s: (tmp_path / "table" / row[s]).read_bytes() for s in ("chosen", "rejected")} for row in rows]
    parquet.write_table(pyarrow.Table.from_pylist(cells), tmp_path / "inside.parquet")
    encoded(Pairs(path=jsonl(rows), resolution=16))
    inside = Pairs(path=str(tmp_path / "inside.parquet"), resolution=16)
    assert encoded(inside) == (0, 0)  # the same bytes
    monkeypatch.setattr("diffpo.data.contents._hash", lambda *_: pytest.fail("an image is read again"))
    assert encoded(inside) == encoded(dataclasses.replace(inside, limit=3)) == (0, 0)


@pytest.mark.parametrize("buckets", [True, False])
def test_with_buckets_the_size_follows_the_chosen_image(records, jsonl, buckets):
    """The same image beside a chosen one of another shape has another size, and so another row."""
    rows = records(3, size=lambda i: [(24, 20), (20, 40), (48, 20)][i])
    both = [rows[0] | {"rejected": rows[2]["rejected"]}, rows[1] | {"rejected": rows[2]["rejected"]}]
    source = Pairs(path=jsonl(both), resolution=16, buckets=buckets)
    stored = filled(source, TinyEncoder()).open()
    sizes = [stored.images(i)["rejected_size"][4:].tolist() for i in range(2)]
    assert (sizes[0] != sizes[1]) == buckets
    assert stored.targets.tolist() == [[1, *size] for size in sizes]
    assert same_encodings(source)


def test_a_store_says_what_it_is_for(table, encoder):
    import json

    made = filled(Pairs(path=table, resolution=16), encoder)
    key = json.loads((made.media.folder / "recipe.json").read_text())
    assert (key["encoder"], key["resolution"], key["dtype"]) == ("tiny", 16, "float32")


def test_only_the_rows_asked_for_are_loaded(records, jsonl, encoder):
    import pyarrow

    source = Pairs(path=jsonl(records(12)), resolution=256)
    made = filled(source, encoder)
    size = sum(path.stat().st_size for path in made.media.folder.glob("*.arrow"))
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
        with pytest.raises(UserError, match=r"the disk is full: .*\.arrow could not be written"):
            made.fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in made.media.folder.iterdir()] == ["recipe.json"]
    made.fill()
    assert not made.missing


def test_a_place_that_cannot_be_written_is_the_users_error(table, encoder):
    source = Pairs(path=table, resolution=16, cache_dir=table)  # a file, not a folder
    with pytest.raises(UserError, match=r"cannot be made \(Not a directory\): set data.cache_dir"):
        filled(source, encoder)


def test_a_damaged_file_is_named(table, encoder):
    made = filled(Pairs(path=table, resolution=16), encoder)
    victim = next(made.texts.folder.glob("*.arrow"))
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
            caches = [EncodingCache(table, source, encoder, seed=0, rank=rank) for rank in (0, 1)]
            for each in caches:
                each.fill(world=2)
            for each in caches:
                each.open()
        else:
            LiveEncodings(table, source, encoder, seed=0, rank=0)
            LiveEncodings(table, source, encoder, seed=0, rank=1)
        assert [record.getMessage() for record in caplog.records if "longer" in record.getMessage()] == [
            f"{table.path}: {long} of 7 different captions are longer than the 16 tokens that a text encoder reads, "
            "and are cut there."
        ]


def test_captions_that_fit_are_not_spoken_of(table, caplog):
    filled(Pairs(path=table, resolution=8), TinyEncoder()).open()
    assert "longer" not in caplog.text


@pytest.mark.parametrize("geometry", [{}, {"crop": "random", "flip": True, "buckets": True}], ids=["plain", "moving"])
def test_encoded_together_agrees_and_is_kept_apart(records, jsonl, tmp_path, geometry):
    """Sizes differ from row to row and one image is broken: each encoding stays in its place."""
    path = jsonl(records(10, size=lambda i: [(24, 20), (20, 40), (48, 20)][i % 3]))
    (tmp_path / "table/img/rejected5.png").write_bytes(b"no image")
    source = Pairs(path=path, resolution=16, encode_batch=3, **geometry)
    encoder = TinyEncoder()
    made = filled(source, encoder)
    together, alone = made.open(), filled(dataclasses.replace(source, encode_batch=1), TinyEncoder()).open()
    assert max(encoder.batches) == 3 and encoder.images == 19
    assert together.broken == alone.broken and (together.targets == alone.targets).all()
    for i in set(range(10)) - {5}:
        for name, x in alone.images(i).items():
            torch.testing.assert_close(together.images(i)[name], x, rtol=1e-4, atol=1e-4)
    assert made.media.recipe == filled(dataclasses.replace(source, encode_batch=2), TinyEncoder()).media.recipe
    assert encoded(source) == (0, 0)
    assert encoded(dataclasses.replace(source, encode_batch=None)) == (0, 0)  # the one by one above


def test_processes_decode_the_same_pixels(table):
    """Three pieces of work, a broken image among them; the processes end with their work."""
    source = Pairs(path=table, resolution=16, workers=2, crop="random", flip=True)
    assert encoded(source) == (19, 4)
    assert same_encodings(source)
    assert encoded(dataclasses.replace(source, workers=0)) == (0, 0), "how they were decoded is no setting of theirs"
