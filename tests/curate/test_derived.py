"""Tables made of others: resumed after a kill, images untouched, nothing overwritten unasked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow.parquet
import pytest
from PIL import Image

from diffpo.curate.derived import CHUNK_ROWS, Target, compute_rows
from diffpo.curate.inspect import guess_source
from diffpo.data.splits import load_table
from diffpo.errors import UserError

RECIPE = {"made by": "counting"}


def open_table(path, split: str = "train"):
    return load_table(guess_source(str(path), split), str(path), split)


@pytest.fixture
def table(records, jsonl):
    return open_table(jsonl(records(2 * CHUNK_ROWS + 5, user_id=lambda i: f"user {i}")))


def count(rows: range):
    yield from ({"chosen_score": i / 7, "note": None} for i in rows)


def target(table, folder, recipe=RECIPE, split="train") -> Target:
    return Target(folder, split, table, recipe)


def test_results_come_in_the_order_of_the_rows_and_exactly(table):
    columns = compute_rows(table, RECIPE, count, "Counting")
    assert columns == {"chosen_score": [i / 7 for i in range(len(table))], "note": [None] * len(table)}


def test_finished_chunks_are_not_computed_again(table):
    asked = []

    def until_the_third(rows):
        asked.append(rows)
        if len(asked) == 3:
            raise UserError("stop")
        yield from count(rows)

    with pytest.raises(UserError, match="stop"):
        compute_rows(table, RECIPE, until_the_third, "Counting")
    again = []

    def note(rows):
        again.append(rows)
        yield from count(rows)

    columns = compute_rows(table, RECIPE, note, "Counting")
    assert again == [asked[2]] == [range(2 * CHUNK_ROWS, len(table))]
    assert columns["chosen_score"] == [i / 7 for i in range(len(table))]


def test_what_computes_and_what_it_reads_decide_what_is_reused(table, records, jsonl):
    def fail(rows):
        raise UserError("computed anew")
        yield

    compute_rows(table, RECIPE, count, "Counting")
    compute_rows(table, dict(RECIPE), fail, "Counting")
    with pytest.raises(UserError, match="anew"):
        compute_rows(table, {"made by": "guessing"}, fail, "Counting")
    with pytest.raises(UserError, match="anew"):
        compute_rows(open_table(jsonl(records(9), "other.jsonl")), RECIPE, fail, "Counting")


KILLED = """
import os, signal, sys
from diffpo.curate.derived import compute_rows
from diffpo.curate.inspect import guess_source
from diffpo.data.splits import load_table

table = load_table(guess_source(sys.argv[1]), sys.argv[1], "train")

def compute(rows):
    for i in rows:
        if i == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        yield {"chosen_score": i / 7, "note": None}

compute_rows(table, {"made by": "counting"}, compute, "Counting")
"""


def test_a_killed_process_loses_one_chunk(table):
    code = [sys.executable, "-c", KILLED, table.path, str(CHUNK_ROWS + 3)]
    assert subprocess.run(code, env=os.environ).returncode == -signal.SIGKILL
    asked = []

    def note(rows):
        asked.append(rows.start)
        yield from count(rows)

    columns = compute_rows(table, RECIPE, note, "Counting")
    assert asked == [CHUNK_ROWS, 2 * CHUNK_ROWS]
    assert columns["chosen_score"] == [i / 7 for i in range(len(table))]


def test_a_damaged_file_is_named(table):
    compute_rows(table, RECIPE, count, "Counting")
    file = sorted(Path(os.environ["DIFFPO_CACHE"]).rglob("00001.json"))[0]
    file.write_text(file.read_text()[:-9])
    with pytest.raises(UserError, match=r"00001\.json is damaged.*delete it"):
        compute_rows(table, RECIPE, count, "Counting")


def test_a_written_table_is_read_like_any_other(table, tmp_path):
    made = target(table, tmp_path / "out", split="validation_unique")
    made.write(table.rows, compute_rows(table, RECIPE, count, "Counting"), {"odd": 3})
    again = open_table(tmp_path / "out", "validation_unique")
    for name in ("prompt", "chosen", "rejected", "user_id"):
        assert again.column(name) == table.column(name)
    assert Path(again.column("chosen")[0]).is_absolute()
    assert again.column("chosen_score") == [i / 7 for i in range(len(table))]
    record = json.loads(made.record.read_text())
    assert record["recipe"] == RECIPE and record["rows"] == len(table) and record["odd"] == 3
    assert record["source"] == {"path": table.path, "fingerprint": table.fingerprint}


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
    path = target(table, tmp_path / "out").write(table.rows, {"preference": [1.0, 0.8, 0.7]})
    assert [cell["bytes"] for cell in open_table(tmp_path / "out").column("chosen")] == [
        row["chosen"]["bytes"] for row in rows
    ]
    plain = datasets.load_dataset("parquet", data_files=str(path), split="train")  # as anyone would read it
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
    path = second.write(second.table.rows, {"user_id": ["y"] * len(table)})
    assert json.loads(second.record.read_text())["source"]["provenance"]["recipe"] == RECIPE
    assert pyarrow.parquet.read_schema(path).names.count("user_id") == 1
