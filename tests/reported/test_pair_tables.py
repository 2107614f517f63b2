"""Pair tables of others: hidden files, texts, labels, names of columns, pairs that teach nothing, one bad row."""

import json
import os
import tarfile

import pyarrow
import pytest
from data_fixtures import jsonl, own_caches, picture, records  # noqa: F401
from pyarrow import parquet

from diffpo.curate.imports.run import ImportOptions, import_table
from diffpo.curate.inspect import guess_source, inspect
from diffpo.data import Pairs, load_splits
from diffpo.errors import ConfigError, UserError


def write_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints/pairs.jsonl", "._pairs.jsonl", "__MACOSX/sub/pairs.jsonl"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_hidden_files_are_no_rows(records, tmp_path, hidden, kind):  # noqa: F811
    rows = records(12)
    for name in ("pairs.jsonl", hidden):
        write_table((tmp_path / "table" / name).with_suffix(f".{kind}"), rows)
    assert inspect(guess_source(str(tmp_path / "table"))).train.counts.rows == 12


@pytest.mark.parametrize("hidden", [".old/w/a.png", "__MACOSX/w/a.png"])
def test_hidden_folders_are_no_twins(picture, tmp_path, hidden):  # noqa: F811
    for name in ("w/a.png", "l/a.png", "w/._a.png", "l/._a.png", hidden, hidden.replace("/w/", "/l/")):
        picture(tmp_path / "twins" / name)
    (tmp_path / "twins/w/a.txt").write_text("a cat")
    assert import_table(str(tmp_path / "twins"), tmp_path / "out", ImportOptions()).rows == 1


def test_a_path_that_exists_is_no_pattern(records, tmp_path):  # noqa: F811
    for folder, count in (("st?r", 4), ("star", 5)):
        rows = records(count)
        cells = [{k: (tmp_path / "table" / v).read_bytes() if k != "prompt" else v for k, v in r.items()} for r in rows]
        write_table(tmp_path / folder / "pairs.parquet", cells)
    assert len(load_splits(Pairs(path=str(tmp_path / "st?r/pairs.parquet"))).train) == 4
    assert len(load_splits(Pairs(path=str(tmp_path / "st[ar][ar]/pairs.parquet"))).train) == 5


@pytest.mark.parametrize("paths", [True, False])
def test_cells_of_any_form_are_images(records, tmp_path, paths):  # noqa: F811
    """Bytes and a path in one cell, whatever wrote the table: `datasets` does not call that an image by itself."""
    rows, table = records(3), tmp_path / "table"
    for row in rows:
        for side in ("chosen", "rejected"):
            row[side] = {"bytes": (table / row[side]).read_bytes(), "path": row[side] if paths else None}
    write_table(table / "a.parquet", rows)
    write_table(table / "b.parquet", [row | {"preference": 1.0} for row in rows])
    for path in (table, table / "a.parquet"):
        assert inspect(guess_source(str(path))).train.broken == {}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_captions_in_other_encodings_are_the_same_words(picture, tmp_path, encoding):  # noqa: F811
    for side in ("w", "l"):
        picture(tmp_path / f"twins/{side}/a.png")
        (tmp_path / f"twins/{side}/a.txt").write_bytes("a café at night".encode(encoding))
    import_table(str(tmp_path / "twins"), tmp_path / "out", ImportOptions())
    assert load_splits(Pairs(path=str(tmp_path / "out"))).train.column("prompt") == ["a café at night"]


def test_a_caption_that_is_no_text_names_its_file(picture, tmp_path):  # noqa: F811
    for side in ("w", "l"):
        picture(tmp_path / f"twins/{side}/a.png")
    (tmp_path / "twins/w/a.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(UserError, match=r"w/a\.txt, line 1, is not UTF-8"):
        import_table(str(tmp_path / "twins"), tmp_path / "out", ImportOptions())


@pytest.mark.parametrize("text", ["thing \ud83d", "thing \0", "thing \ufffd"])
def test_broken_text_names_its_row(records, jsonl, text):  # noqa: F811
    rows = records(4)
    rows[2]["prompt"] = text
    with pytest.raises(UserError, match=r"pairs\.jsonl, line 3 holds"):
        guess_source(jsonl(rows))


@pytest.mark.parametrize("mark", ["\ufeff", "\ufffd", "\0"])
def test_broken_text_inside_parquet_names_its_row(records, tmp_path, mark):  # noqa: F811
    rows = records(3)
    rows[1]["prompt"] += mark
    write_table(tmp_path / "table/pairs.parquet", rows)
    with pytest.raises(UserError, match=r"`prompt` of row 1"):
        load_splits(Pairs(path=str(tmp_path / "table/pairs.parquet")))


def test_types_that_differ_from_file_to_file_are_one_table(records, tmp_path):  # noqa: F811
    rows = records(4)
    write_table(tmp_path / "table/a.jsonl", [row | {"preference": 1} for row in rows[:2]])
    write_table(tmp_path / "table/b.jsonl", [row | {"preference": 0.8, "user_id": "ada"} for row in rows[2:]])
    table = load_splits(Pairs(path=str(tmp_path / "table"))).train
    assert table.column("preference") == [1.0, 1.0, 0.8, 0.8]
    assert table.column("user_id") == [None, None, "ada", "ada"]


@pytest.mark.parametrize("missing", ["NaN", "null"])
def test_a_label_that_is_missing_is_no_label(records, tmp_path, missing):  # noqa: F811
    lines = [json.dumps(row | {"preference": 0.7}) for row in records(4)]
    lines[1] = lines[1].replace("0.7", missing)
    (tmp_path / "table/pairs.jsonl").write_text("\n".join(lines))
    table = load_splits(Pairs(path=str(tmp_path / "table/pairs.jsonl"))).train
    assert table.origin.tolist() == [0, 2, 3] and table.counts.unlabelled == 1
    listed = [{"image_0": f"img/chosen{i}.png", "image_1": f"img/rejected{i}.png", "prompt": "p"} for i in range(2)]
    text = json.dumps([row | {"pref_0": 7, "pref_1": "-1"} for row in listed]).replace("7", missing, 1)
    (tmp_path / "table/list.json").write_text(text)
    report = import_table(str(tmp_path / "table/list.json"), tmp_path / "out", ImportOptions())
    assert (report.pairs, report.unlabelled) == (1, 1)


def test_one_bad_path_drops_its_row(records, jsonl):  # noqa: F811
    rows = records(3)
    rows[1]["chosen"] = "~nosuchuser/x.png"
    report = inspect(guess_source(jsonl(rows))).train
    assert list(report.broken) == [1] and "nosuchuser" in report.broken[1]


@pytest.mark.parametrize("marks", [[[1]], [[1, 0]], "1", [2]])
def test_bad_segments_name_their_row(records, jsonl, marks):  # noqa: F811
    rows = [row | {"segments": [1, 0, -1, 1]} for row in records(3)]
    rows[2]["segments"] = marks
    with pytest.raises(UserError, match=r"`segments`.*(in row 2|in other rows it is)"):
        inspect(guess_source(jsonl(rows)))


def test_pairs_that_teach_nothing_are_counted(records, jsonl, tmp_path):  # noqa: F811
    rows = records(6)
    rows[0]["prompt"] = " "
    rows[1]["rejected"] = rows[1]["chosen"]
    (tmp_path / "table/img/rejected2.png").write_bytes((tmp_path / "table/img/chosen2.png").read_bytes())
    rows.append(rows[5] | {"chosen": rows[5]["rejected"], "rejected": rows[5]["chosen"]})
    report = inspect(guess_source(jsonl(rows))).train
    assert (report.blank, report.identical, report.contradicting) == (1, 2, 2)


def test_columns_of_other_names_are_named(records, jsonl):  # noqa: F811
    rows = [{"text": r["prompt"], "winner": r["chosen"], "loser": r["rejected"], "prompt": "no"} for r in records(3)]
    names = {"prompt": "text", "chosen": "winner", "rejected": "loser"}
    path = jsonl(rows)
    with pytest.raises(UserError, match=r"--columns prompt=text,chosen=winner,rejected=loser"):
        guess_source(path)
    table = load_splits(Pairs(path=path, columns=names)).train
    assert table.column("prompt") == [row["text"] for row in rows] and table.rows.column_names == list(names)
    assert guess_source(path, columns=names) == Pairs(path=path, columns=names)
    with pytest.raises(UserError, match=r"data.columns names best, but .* has the columns"):
        load_splits(Pairs(path=path, columns={"chosen": "best"}))
    swapped = load_splits(Pairs(path=jsonl(records(2)), columns={"chosen": "rejected", "rejected": "chosen"})).train
    assert "rejected0" in swapped.column("chosen")[0]


def test_a_table_without_splits_needs_no_split(records, tmp_path):  # noqa: F811
    write_table(tmp_path / "table/test.jsonl", records(3))
    assert len(load_splits(Pairs(path=str(tmp_path / "table"))).train) == 3


def test_places_that_are_no_table_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        load_splits(Pairs(path=str(tmp_path / "pipe.jsonl")))
    with pytest.raises(ConfigError, match="path"):
        Pairs(path="")


def test_a_pipe_where_an_image_should_be_drops_its_row(records, jsonl, tmp_path):  # noqa: F811
    path = jsonl(records(2))
    (tmp_path / "table/img/chosen1.png").unlink()
    os.mkfifo(tmp_path / "table/img/chosen1.png")
    assert "not a regular file" in inspect(guess_source(path)).train.broken[1]


def test_huge_members_of_archives_are_refused_by_name(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo("0.chosen.png")
        member.size = 300 * 2**20
        tar.addfile(member, open("/dev/zero", "rb"))  # noqa: SIM115
    with pytest.raises(UserError, match=r"0\.chosen\.png of a\.tar has 300 MB; at most 256 are read"):
        import_table(str(tmp_path / "a.tar"), tmp_path / "out", ImportOptions())


def test_hidden_members_of_archives_are_no_pairs(tmp_path, picture):  # noqa: F811
    image = picture(tmp_path / "x.png")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("0.chosen.png", "0.rejected.png", "._0.chosen.png", "__MACOSX/1.chosen.png"):
            tar.add(image, name)
        (tmp_path / "0.txt").write_text("a cat")
        tar.add(tmp_path / "0.txt", "0.txt")
    assert import_table(str(tmp_path / "a.tar"), tmp_path / "out", ImportOptions()).rows == 1
