"""Tables made of others: resumed after a kill, images untouched, nothing overwritten unasked."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow.parquet
import pytest
from PIL import Image

from diffpo.curate.derived import ROWS_PER_FILE, compute_values
from diffpo.curate.inspect import guess_source
from diffpo.curate.write import Target
from diffpo.data.contents import identify
from diffpo.data.splits import load_table
from diffpo.disk.rows import as_keys, digest
from diffpo.errors import UserError

RECIPE = {"made by": "counting"}


def open_table(path, split: str = "train"):
    return load_table(guess_source(str(path), split), str(path), split)


@pytest.fixture
def table(records, jsonl):
    return open_table(jsonl(records(ROWS_PER_FILE + 5, user_id=lambda i: f"user {i}")))


def keys_of(table):
    return as_keys([digest(str(i)) for i in range(len(table))])


def count(places):
    yield from ({"chosen_score": i / 7, "note": None} for i in places)


def target(table, folder, recipe=RECIPE, split="train") -> Target:
    return Target(folder, split, table, recipe)


def test_values_come_in_the_order_of_the_keys_and_exactly(table):
    keys = keys_of(table)
    keys[3] = b""
    values = compute_values("counts", RECIPE, keys, count, "Counting")
    assert values[3] is None
    assert [value for value in values if value is not None] == [
        {"chosen_score": i / 7, "note": None} for i in range(len(table)) if i != 3
    ]


def test_what_is_finished_is_not_computed_again(table):
    asked, again = [], []

    def until_the_second(places):
        asked.extend(places)
        if len(asked) > ROWS_PER_FILE:
            raise UserError("stop")
        yield from count(places)

    def note(places):
        again.extend(places)
        yield from count(places)

    with pytest.raises(UserError, match="stop"):
        compute_values("counts", RECIPE, keys_of(table), until_the_second, "Counting")
    compute_values("counts", RECIPE, keys_of(table), note, "Counting")
    assert again == list(range(ROWS_PER_FILE, len(table)))
    compute_values("counts", {"made by": "guessing"}, keys_of(table), note, "Counting")
    assert len(again) == 2 * len(table) - ROWS_PER_FILE


def test_a_written_table_is_read_like_any_other(table, tmp_path):
    made = target(table, tmp_path / "out", split="validation_unique")
    made.write(table.rows, {"chosen_score": [i / 7 for i in range(len(table))]}, {"odd": 3})
    again = open_table(tmp_path / "out", "validation_unique")
    for name in ("prompt", "chosen", "rejected", "user_id"):
        assert again.column(name) == table.column(name)
    assert Path(again.column("chosen")[0]).is_absolute()
    assert again.column("chosen_score") == [i / 7 for i in range(len(table))]
    record = json.loads(made.record.read_text())
    assert record["recipe"] == RECIPE and record["rows"] == len(table) and record["odd"] == 3
    assert record["source"] == {"path": table.path, "fingerprint": identify(table)}


def test_columns_of_the_same_name_are_replaced(table, tmp_path):
    target(table, tmp_path / "out").write(table.rows, {"user_id": ["nobody"] * len(table)})
    again = open_table(tmp_path / "out")
    assert set(again.column("user_id")) == {"nobody"} and again.column("prompt") == table.column("prompt")


def test_embedded_images_are_carried_over_byte_by_byte(records, jsonl, tmp_path):
    jsonl(records(3))
    rows = [
        {"prompt": f"p {i}"}
        | {
            s: {"bytes": (tmp_path / f"table/img/{s}{i}.png").read_bytes(), "path": None}
            for s in ("chosen", "rejected")
        }
        for i in range(3)
    ]
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "chosen": datasets.Image(), "rejected": datasets.Image()}
    )
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "embedded.parquet")
    table = open_table(tmp_path / "embedded.parquet")
    made = target(table, tmp_path / "out")
    made.write(table.rows, {"preference": [1.0, 0.8, 0.7]})
    assert [cell["bytes"] for cell in open_table(tmp_path / "out").column("chosen")] == [
        row["chosen"]["bytes"] for row in rows
    ]
    plain = datasets.load_dataset("parquet", data_files=str(made.path), split="train")  # as anyone would read it
    assert isinstance(plain[0]["rejected"], Image.Image)


def test_rows_in_another_order_are_written_in_it(table, tmp_path):
    order = list(range(len(table)))[::-1]
    target(table, tmp_path / "out").write(table.rows.select(order), {"chosen_score": order})
    again = open_table(tmp_path / "out")
    assert again.column("chosen_score") == order
    assert again.column("chosen") == table.column("chosen")[::-1]


def test_the_same_table_is_not_made_twice_and_another_one_not_replaced(table, tmp_path):
    made = target(table, tmp_path / "out")
    assert not made.is_finished(fresh=False)
    made.write(table.rows, {"user_id": ["x"] * len(table)})
    assert made.is_finished(fresh=False) and not made.is_finished(fresh=True)
    other = target(table, tmp_path / "out", {"made by": "guessing"})
    with pytest.raises(UserError, match=r"other settings.*--fresh"):
        other.is_finished(fresh=False)
    assert not other.is_finished(fresh=True)
    assert not target(table, tmp_path / "out", split="validation").is_finished(fresh=False)


def test_a_table_without_its_last_record_is_not_finished(table, tmp_path):
    """As a kill between the two files leaves it."""
    made = target(table, tmp_path / "out")
    made.write(table.rows, {"user_id": ["x"] * len(table)})
    record = json.loads(made.record.read_text())
    made.record.write_text(json.dumps({name: record[name] for name in ("source", "recipe")}))
    assert not made.is_finished(fresh=False)
    assert not list((tmp_path / "out").glob(".*"))


def test_a_table_of_unknown_making_is_left_alone(table, tmp_path):
    made = target(table, tmp_path / "out")
    made.folder.mkdir()
    made.path.write_bytes(b"precious")
    with pytest.raises(UserError, match="nothing says how it was made"):
        made.is_finished(fresh=True)


@pytest.mark.parametrize("folder", ["table", "table/below", "."])
def test_no_table_is_written_into_the_one_it_is_made_of(folder, records, jsonl, tmp_path):
    jsonl(records(3), "train.jsonl")
    with pytest.raises(UserError, match="is read from there"):
        target(open_table(tmp_path / "table"), tmp_path / folder).is_finished(fresh=True)


def test_a_derived_table_brings_the_provenance_of_its_source_along(table, tmp_path):
    target(table, tmp_path / "first").write(table.rows, {"user_id": ["x"] * len(table)})
    second = target(open_table(tmp_path / "first"), tmp_path / "second", {"made by": "guessing"})
    second.write(second.table.rows, {"user_id": ["y"] * len(table)})
    assert json.loads(second.record.read_text())["source"]["provenance"]["recipe"] == RECIPE
    assert pyarrow.parquet.read_schema(second.path).names.count("user_id") == 1
