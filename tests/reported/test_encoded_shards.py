"""Encoded pairs in shards: what is damaged, another's or of another table is never read, and what is advised works."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from data_fixtures import jsonl, own_caches, picture, records  # noqa: F401
from tiny_encoder import TinyEncoder

from diffpo.data import Pairs, load_splits
from diffpo.data.loader import EncodedPair
from diffpo.data.sharding import Sharding, recipe_of, table_of
from diffpo.data.shards import Index
from diffpo.data.storage import Storage
from diffpo.data.streamed import StreamLoader, check_recipe
from diffpo.errors import UserError
from diffpo.training.stream import take_place


def encode(path: str, place: Path, *, fresh: bool = False, more: dict | None = None, **settings) -> Pairs:
    """Do what `write_stream` does, with an encoder that needs no model: shards of four pairs."""
    source, encoder, storage = Pairs(path=path, resolution=16, **settings), TinyEncoder(), Storage(str(place))
    recipe, table = recipe_of(source, encoder, 0) | (more or {}), load_splits(source).train
    sharding = Sharding(table, source, encoder, storage, "train", 0, recipe, shard_rows=4, shown=False)
    take_place(storage, {"recipe": recipe, "table": table_of(source)}, [sharding], PartialState(cpu=True), fresh=fresh)
    sharding.write()
    Index(recipe, tuple(table.rows.column_names), {"train": sharding.finish()}, table_of(source)).write(storage)
    return source


def read(place: Path, path: str, **settings) -> int:
    """Make the first epoch's batches, as training does; returns their number."""
    source, storage = Pairs(path=path, resolution=16, **settings), Storage(str(place))
    index = Index.read(storage)
    check_recipe(index, recipe_of(source, TinyEncoder(), 0), table_of(source), str(place))
    loader = StreamLoader(storage, index, "train", source, seed=0, caption_dropout=0.1)
    plan = loader.schedule(1, 1, 2)
    return len(list(loader.updates(plan, 0, plan.updates_per_epoch)))


@pytest.fixture
def table(records, jsonl) -> str:  # noqa: F811
    return jsonl(records(12))


@pytest.fixture
def place(table, tmp_path) -> Path:
    encode(table, tmp_path / "place")
    return tmp_path / "place"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)


def exchange(file: Path) -> None:
    shutil.copyfile(file.with_name("00000.arrow"), file)


@pytest.mark.parametrize("spoil", [cut, flip, exchange, Path.unlink])
def test_a_shard_that_is_not_what_was_written_is_refused_and_written_again_as_advised(table, place, spoil):
    file = place / "train" / "00001.arrow"
    spoil(file)
    with pytest.raises(UserError, match=r"00001.arrow is not what `diffpo data encode` wrote there.*: remove it, and "):
        read(place, table)
    if spoil is not cut:  # another size is seen without being told
        file.unlink(missing_ok=True)
    encode(table, place)
    assert read(place, table) == 6


@pytest.mark.parametrize("text", ["{}", '{"format": 1}', '{"format": 1, "splits": {"train": {"shards": [{}]}}}'])
def test_a_damaged_index_is_named(table, place, text):
    (place / "index.json").write_text(text)
    with pytest.raises(UserError, match=r"has no index.json of encoded pairs|index.json is damaged"):
        read(place, table)


@pytest.mark.parametrize("name", ["../other/00000.arrow", "/train/00000.arrow", "train/../../00000.arrow"])
def test_a_shard_elsewhere_is_refused(table, place, name):
    """An index that others wrote decides neither what is read nor where copies go."""
    index = json.loads((place / "index.json").read_text())
    index["splits"]["train"]["shards"][0]["file"] = name
    (place / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"is damaged \(ValueError: .* is no shard\)"):
        read(place, table)


def test_nothing_is_replaced_in_silence(table, place, records, jsonl, tmp_path):  # noqa: F811
    """Shards of other settings or rows, an index of somebody else; with `fresh` nothing of the old shards stays."""
    before = {file: file.read_bytes() for file in place.rglob("*") if file.is_file()}
    for settings in ({"cache_dtype": "float16"}, {"limit": 6}, {"more": {"segments": [1.0]}}):
        with pytest.raises(UserError, match="or give --fresh"):
            encode(table, place, **settings)
    jsonl(records(12)[::-1])  # the same table holds other rows now
    with pytest.raises(UserError, match=r"holds shards of another table, .* or give --fresh"):
        encode(table, place)
    assert {file: file.read_bytes() for file in place.rglob("*") if file.is_file()} == before
    encode(table, place, fresh=True, limit=6)
    assert len(list(place.glob("train/*.arrow"))) == 2 and read(place, table, limit=6) == 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.json").write_text('{"mine": 1}')
    for fresh in (False, True):
        with pytest.raises(UserError, match=r"holds an index.json that names no encoded pairs"):
            encode(table, tmp_path / "mine", fresh=fresh)
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["index.json"]


def test_a_kill_while_shards_are_replaced_leaves_none_that_is_read(table, place, monkeypatch):
    """The old index goes before the first shard."""
    monkeypatch.setattr("diffpo.data.sharding.Sharding._write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        encode(table, place, fresh=True, cache_dtype="float16")
    with pytest.raises(UserError, match=r"has no index.json of encoded pairs"):
        read(place, table)


def test_the_window_and_the_labels_of_segments_reach_the_loader(table, place):
    """So many shards are shuffled together as the config says, and labels stay with their frames."""
    orders = []
    for window in (1, 3):
        source = Pairs(path=table, resolution=16, encoded_window=window)
        how = {"seed": 0, "caption_dropout": 0.0, "reads_segments": True}
        storage = Storage(str(place))
        loader = StreamLoader(storage, Index.read(storage), "train", source, **how)
        plan = loader.schedule(1, 1, 4)
        orders.append([{int(row) // 4 for row in plan.indices(update, 0).ravel()} for update in range(3)])
    assert all(len(shards) == 1 for shards in orders[0]) and any(len(shards) > 1 for shards in orders[1])
    told = [{"preference": 1.0, "segments": marks} for marks in ([1, 0, -1], [0, 0, 1])]
    rows = [EncodedPair({}, {}, lambda _: {}, values) for values in told]
    assert loader._labels_of(torch.arange(2), rows)["segments"].tolist() == [[1, 0, -1], [0, 0, 1]]


def test_settings_that_choose_the_table_are_compared(table, place):
    for key, value in (("limit", 4), ("ties", "keep"), ("validation_fraction", 0.3), ("split", "other")):
        with pytest.raises(UserError, match=rf"{key} is '?{value}'? here and .* there"):
            read(place, table, **{key: value})
    with pytest.raises(UserError, match=r"path is 'another.jsonl' here and 'pairs.jsonl' there"):
        read(place, "somewhere/another.jsonl")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("", "the address is empty"),
        (" ", "the address is empty"),
        ("s3:/bucket/pairs", "did you mean s3://bucket/pairs?"),
        ("s4://bucket/pairs", "cannot be opened: Protocol not known: s4"),
        ("FILE", "is a file: give a folder"),
    ],
)
def test_addresses_that_are_none(address, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("x")
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        Storage(address)
    assert [file.name for file in tmp_path.iterdir()] == ["FILE"]


class Store:
    """A store that raises errors of its own, as those of the clouds do."""

    protocol = "odd"

    def __getattr__(self, name: str):
        def fails(*_: object, **__: object) -> None:
            raise RuntimeError("AccessDenied")

        return fails


def test_whatever_a_store_raises_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda _: (Store(), "bucket/pairs"))
    storage = Storage("odd://bucket/pairs")
    for done in (
        lambda: storage.read_json("index.json"),
        lambda: storage.size("a"),
        lambda: storage.remove("a"),
        lambda: storage.fetch("a", tmp_path / "a"),
        lambda: storage.write("a", lambda file: file.write(b"x")),
    ):
        with pytest.raises(UserError, match="AccessDenied"):
            done()
