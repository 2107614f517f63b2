"""Every form in which a table may be given comes to the same pairs."""

import csv
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import pytest

from diffpo.data import PickAPic, load_splits
from diffpo.data.contents import identify
from diffpo.data.sources.pairs import Pairs
from diffpo.disk.rows import cache_home
from diffpo.errors import UserError
from diffpo.media.frames import decode

ROWS = 5
MESSAGES = {"prompt": "a", "chosen": [{"role": "user"}], "rejected": [{"role": "user"}]}
"""A row of a table for language models, which has the same columns."""


def with_bytes(rows, folder):
    return [row | {side: (folder / row[side]).read_bytes() for side in ("chosen", "rejected")} for row in rows]


def save_jsonl(rows, folder):
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return path


def save_json(rows, folder):
    path = folder / "pairs.json"
    path.write_text(json.dumps(rows, indent=1))
    return path


def save_csv(rows, folder, name="pairs.csv"):
    path = folder / name
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def save_metadata_csv(rows, folder):
    return save_csv(rows, folder, "metadata.csv").parent


def save_metadata_jsonl(rows, folder):
    return save_jsonl(rows, folder).rename(folder / "metadata.jsonl").parent


def save_metadata_parquet(rows, folder):
    datasets.Dataset.from_list(rows).to_parquet(folder / "metadata.parquet")
    return folder


def save_parquet_of_bytes(rows, folder):
    datasets.Dataset.from_list(with_bytes(rows, folder)).to_parquet(folder / "pairs.parquet")
    return folder / "pairs.parquet"


def as_image_features(rows, folder):
    rows = [row | {side: str(folder / row[side]) for side in ("chosen", "rejected")} for row in rows]
    features = {"prompt": datasets.Value("string"), "chosen": datasets.Image(), "rejected": datasets.Image()}
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


def save_parquet_of_images(rows, folder):
    as_image_features(rows, folder).to_parquet(folder / "pairs.parquet")
    return folder / "pairs.parquet"


def save_parquet_folder(rows, folder):
    (folder / "data").mkdir()
    for shard, part in enumerate((rows[:2], rows[2:])):
        part = datasets.Dataset.from_list(with_bytes(part, folder))
        part.to_parquet(folder / f"data/train-0000{shard}-of-00002.parquet")
    datasets.Dataset.from_list(with_bytes(rows[:1], folder)).to_parquet(folder / "data/test-00000-of-00001.parquet")
    return folder


def save_parquet_glob(rows, folder):
    save_parquet_folder(rows, folder)
    return folder / "data" / "train-*.parquet"


def save_datasets_folder(rows, folder):
    as_image_features(rows, folder).save_to_disk(folder / "saved")
    return folder / "saved"


def save_datasets_dict(rows, folder):
    table = as_image_features(rows, folder)
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(folder / "saved")
    return folder / "saved"


FORMS = [
    save_jsonl,
    save_json,
    save_csv,
    save_metadata_csv,
    save_metadata_jsonl,
    save_metadata_parquet,
    save_parquet_of_bytes,
    save_parquet_of_images,
    save_parquet_folder,
    save_parquet_glob,
    save_datasets_folder,
    save_datasets_dict,
]


@pytest.mark.parametrize("save", FORMS, ids=lambda save: save.__name__)
def test_every_form_holds_the_same_pairs(save, records, tmp_path):
    rows = records(ROWS)
    folder = tmp_path / "table"
    table = load_splits(Pairs(path=str(save(rows, folder)))).train
    assert table.rows.column_names == ["prompt", "chosen", "rejected"]
    assert table.column("prompt") == [row["prompt"] for row in rows]
    for i, row in enumerate(rows):
        for side in ("chosen", "rejected"):
            assert decode(table.rows[i][side]).tobytes() == decode(str(folder / row[side])).tobytes()


def test_relative_paths_start_at_the_table_wherever_the_process_stands(records, jsonl, tmp_path, monkeypatch):
    jsonl(records(2))
    monkeypatch.chdir(tmp_path)
    table = load_splits(Pairs(path="table/pairs.jsonl")).train
    monkeypatch.chdir(tmp_path / "table" / "img")
    assert decode(table.rows[1]["rejected"]).size == (24, 20)


def test_a_file_with_one_name_per_split(records, jsonl, tmp_path):
    rows = records(6)
    jsonl(rows[:3], "train.jsonl")
    jsonl([row | {"prompt": f"new {i}"} for i, row in enumerate(rows[3:])], "validation.jsonl")
    splits = load_splits(Pairs(path=str(tmp_path / "table"), validation_split="validation"))
    assert (len(splits.train), len(splits.validation)) == (3, 3)


def test_a_table_is_what_its_rows_and_images_are_wherever_it_lies(records, jsonl, tmp_path):
    path = jsonl(records(2))
    before = identify(load_splits(Pairs(path=path)).train)
    os.utime(tmp_path / "table/img/rejected1.png", (1, 1))
    shutil.copytree(tmp_path / "table", tmp_path / "copy")
    assert identify(load_splits(Pairs(path=path)).train) == before
    assert identify(load_splits(Pairs(path=str(tmp_path / "copy/pairs.jsonl"))).train) == before
    (tmp_path / "table/img/rejected1.png").write_bytes((tmp_path / "table/img/rejected0.png").read_bytes())
    assert identify(load_splits(Pairs(path=path)).train) != before


def test_a_parquet_file_that_was_rewritten_is_read_again(records, tmp_path):
    rows = records(3)
    source = Pairs(path=str(save_parquet_of_bytes(rows, tmp_path / "table")))
    before = load_splits(source).train
    save_parquet_of_bytes([row | {"prompt": row["prompt"].upper()} for row in rows], tmp_path / "table")
    after = load_splits(source).train
    assert after.column("prompt")[0] == "A SHAPE NUMBER 0"
    assert after.fingerprint != before.fingerprint


@pytest.mark.parametrize("feature", [datasets.Value("binary"), datasets.Image()], ids=["bytes", "image"])
def test_bytes_stay_on_disk_until_a_row_is_read(tmp_path, feature):
    import pyarrow

    cell = bytes(200_000) if isinstance(feature, datasets.Value) else {"bytes": bytes(200_000), "path": None}
    features = datasets.Features(prompt=datasets.Value("string"), chosen=feature, rejected=feature)
    rows = [{"prompt": "p", "chosen": cell, "rejected": cell}] * 50
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "big.parquet")
    load_splits(Pairs(path=str(tmp_path / "big.parquet")))  # the first time, `datasets` converts it
    before = pyarrow.total_allocated_bytes()
    table = load_splits(Pairs(path=str(tmp_path / "big.parquet"))).train
    read = table.rows[7]["chosen"]
    assert len(read["bytes"] if isinstance(read, dict) else read) == 200_000
    assert pyarrow.total_allocated_bytes() - before < 200_000  # of 20 MB


def expect(message, source):
    with pytest.raises(UserError, match=message):
        load_splits(source)


def test_errors_say_what_was_found_and_what_is_allowed(records, jsonl, tmp_path):
    path = jsonl(records(2))
    expect(
        "There is nothing at .*absent.jsonl. A table can be given as a Hub id",
        Pairs(path=str(tmp_path / "absent.jsonl")),
    )
    expect("has no split `test`; it has train", Pairs(path=path, split="test"))
    expect("has no rows", Pairs(path=jsonl([], "empty.jsonl")))
    (tmp_path / "table" / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    expect("bad.jsonl, line 2 is not JSON", Pairs(path=str(tmp_path / "table/bad.jsonl")))
    (tmp_path / "table" / "bad.json").write_text('{"prompt": "a"}')
    expect("must hold a list of rows, got an object", Pairs(path=str(tmp_path / "table/bad.json")))
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    expect("cannot be read as a .parquet table", Pairs(path=str(tmp_path / "bad.parquet")))
    (tmp_path / "notes.txt").write_text("x")
    expect("found .txt, allowed .parquet", Pairs(path=str(tmp_path / "notes.txt")))
    (tmp_path / "folder").mkdir()
    expect("holds no table: found nothing", Pairs(path=str(tmp_path / "folder")))
    expect("No file matches", Pairs(path=str(tmp_path / "*.none")))
    expect("`chosen` holds list<.*; allowed are image features", Pairs(path=jsonl([MESSAGES], "messages.jsonl")))
    expect("there are shapes:pairs", Pairs(path="shapes:circles"))


def test_missing_columns_name_the_layout_that_fits(records, jsonl):
    path = jsonl(records(2))
    expect("has no column jpg_0, jpg_1, label_0, caption; it has prompt.*Choose data.name=pairs", PickAPic(path=path))
    expect(
        "has no column prompt; it has .*Say which column is which: data.columns='{prompt: COLUMN}'",
        Pairs(path=jsonl([{"chosen": "a", "rejected": "b"}], "no.jsonl")),
    )


def test_single_images_are_no_pairs(jsonl):
    """A table for unpaired KTO: one image and one label per row."""
    rows = [{"prompt": "a", "image": "0.png", "label": True}, {"prompt": "a", "image": "1.png", "label": False}]
    expect("single images.*kto too.*diffpo data build", Pairs(path=jsonl(rows)))


def test_a_hub_id_without_a_network_says_how_to_go_on(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    expect(
        "nobody/nothing.*cannot be read.*hf download --repo-type dataset nobody/nothing", Pairs(path="nobody/nothing")
    )


def test_a_new_process_imports_little_and_finds_the_same_fingerprint(records, jsonl):
    path = jsonl(records(2))
    code = f"""
import sys, diffpo.data
print([m for m in ("datasets", "torch", "PIL", "rich") if m in sys.modules])
print(diffpo.data.load_splits(diffpo.data.Pairs(path={path!r})).train.fingerprint)
"""

    def run(hash_seed):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], env=environment)

    with ThreadPoolExecutor() as pool:
        done = list(pool.map(run, ("0", "1")))  # sets of column names have another order under each
    fingerprint = load_splits(Pairs(path=path)).train.fingerprint
    assert [each.stdout.split("\n")[:2] for each in done] == [["[]", fingerprint]] * 2, done[0].stderr


def test_a_large_table_is_parsed_once_and_again_when_its_text_changes(records, tmp_path, monkeypatch):
    """Of the same size and time: what is kept belongs to the bytes of the table."""
    from diffpo.disk import mapped

    monkeypatch.setattr(mapped, "SMALL", 0)
    path = tmp_path / "pairs.jsonl"
    rows = records(4)
    save = [json.dumps({**row, "chosen": str(row["chosen"]), "rejected": str(row["rejected"])}) for row in rows]
    path.write_text("\n".join(save))
    first = load_splits(Pairs(path=str(path))).train
    time = path.stat().st_mtime_ns
    path.write_text("\n".join(reversed(save)))
    os.utime(path, ns=(time, time))
    for _ in range(2):
        again = load_splits(Pairs(path=str(path))).train
        for name in ("prompt", "chosen", "rejected"):
            assert again.column(name) == first.column(name)[::-1]
    assert len(list((cache_home() / "tables").iterdir())) == 6
