"""Tables and texts of others: what they hold is read as it is, and what is doubtful is refused with its place."""

import json
import os

import pyarrow
import pytest
from pyarrow import parquet

from diffpo.disk.columns import join_tables, read_columns
from diffpo.disk.tables import files_below, read_json, read_rows, read_text
from diffpo.errors import UserError

ROWS = [{"prompt": "ein Café", "seed": 1}, {"prompt": 'a "quoted", one\nin two lines', "seed": 2}]


def write(path, rows):
    """Write rows in the kind that the suffix names."""
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), "utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    else:
        mark = {".csv": ",", ".tsv": "\t"}[path.suffix]
        quoted = [['"' + str(cell).replace('"', '""') + '"' for cell in row.values()] for row in rows]
        path.write_text("\n".join([mark.join(rows[0]), *(mark.join(cells) for cells in quoted)]) + "\n", "utf-8")
    return path


@pytest.mark.parametrize("kind", ["parquet", "json", "jsonl", "csv", "tsv"])
def test_every_kind_gives_the_same_rows(tmp_path, kind):
    read = [row for _, row in read_rows(write(tmp_path / f"table.{kind}", ROWS))]
    assert read == [row | ({"seed": str(row["seed"])} if kind in ("csv", "tsv") else {}) for row in ROWS]


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "tsv"])
def test_columns_have_the_types_of_their_values(tmp_path, kind):
    assert read_columns(write(tmp_path / f"table.{kind}", ROWS), ["prompt"]).to_pylist() == ROWS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "json"])
def test_byte_order_marks_are_no_text(tmp_path, kind, encoding):
    path = write(tmp_path / f"table.{kind}", ROWS)
    path.write_bytes(path.read_text("utf-8").encode(encoding))
    assert [row["prompt"] for _, row in read_rows(path)] == [row["prompt"] for row in ROWS]
    (tmp_path / "caption.txt").write_bytes("a\ufeff cat".encode(encoding))
    assert read_text(tmp_path / "caption.txt") == "a cat"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", 'p,x\na,1\n"b,2\nc,3\n', "a.csv: the row that begins in line 3 .* a quote is opened"),
        ("a.csv", 'p,x\na,1\n"b,2\nc"c,3\n', "a.csv: the row that begins in line 3"),
        ("a.tsv", 'p\tx\na\t"1\n', "a.tsv: the row that begins in line 2"),
        ("a.csv", "p,x\na,1\n\nb\n", "a.csv, line 4 has more or fewer values than the header: 1, not 2"),
        ("a.csv", "p,x\na,1,2\n", "a.csv, line 2 has more or fewer values"),
        ("a.csv", "p,x,p\na,1,b\n", "the column 'p' twice"),
        ("a.csv", b"p,x\ncaf\xe9,1\n", "a.csv, line 2, is not UTF-8"),
        ("a.csv", "p\na\0b\n", "a.csv, line 2 holds the character NUL"),
        ("a.csv", "p\nok\na\ufffdb\n", "a.csv, line 3 holds the mark U\\+FFFD"),
        ("a.jsonl", '{"p": "a"}\n{"p": "\\ud83d"}\n', "a.jsonl, line 2 holds half of a character"),
        ("a.jsonl", '{"p": [{"q": "\\u0000"}]}\n', "a.jsonl, line 1 holds the character NUL"),
        ("a.jsonl", '{"p": 1}\n{"p": 1, "p": 2}\n', "a.jsonl, line 2: the name 'p' comes twice"),
        ("a.jsonl", '{"p": 1}\n[1]\n', "a.jsonl, line 2 is a list; a row is an object"),
        ("a.jsonl", "[" * 100_000, "a.jsonl, line 1 is nested too deeply"),
        ("a.jsonl", '{"p": ' + "9" * 5000 + "}", "a.jsonl, line 1 is not JSON: Exceeds the limit"),
        ("a.json", '{"p": 1}', "a.json must hold a list of rows, got an object"),
        ("a.json", "{", "a.json is not JSON"),
        ("a.parquet", b"PAR1", "a.parquet cannot be read as .parquet"),
        ("a.txt", "x", "found .txt, allowed"),
        ("a.jsonl", "{}".encode("utf-32"), "UTF-32"),
    ],
)
def test_what_is_doubtful_is_refused_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=message):
        list(read_rows(tmp_path / name))


def test_a_place_that_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    for name, message in (("pipe.csv", "it is not a plain file"), ("none.csv", "there is no such file")):
        for read in (lambda path: list(read_rows(path)), read_text, read_json):
            with pytest.raises(UserError, match=message):
                read(tmp_path / name)


def test_values_of_one_column_are_of_one_kind(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"s": [1, 0]}\n{"s": [0, 1]}\n{"s": [[1], 0]}\n')
    with pytest.raises(UserError, match=r"a.jsonl, line 3: `s` is \[\[1\], 0\].* in other rows it is a list of an int"):
        read_columns(path)


@pytest.mark.parametrize(
    ("values", "read"),
    [
        (["1", "2.5"], [1.0, 2.5]),
        (["1", "null"], [1, None]),
        (["NaN", "0.5"], [float("nan"), 0.5]),
        (["true", "0"], [1, 0]),
        (["18446744073709551615", "0"], [2**64 - 1, 0]),
        (["1180591620717411303424", "7"], ["1180591620717411303424", "7"]),
        (["-9223372036854775808", "7"], [-(2**63), 7]),
    ],
)
def test_numbers_keep_their_value(tmp_path, values, read):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"x": {value}}}\n' for value in values))
    assert str(read_columns(path).column("x").to_pylist()) == str(read)


@pytest.mark.parametrize(
    ("cells", "read"),
    [
        (["1", "", "3"], [1, None, 3]),
        (["1", "NaN", "2.5"], [1, None, 2.5]),
        (["true", "false", ""], [True, False, None]),
        (["18446744073709551615", "0", ""], [2**64 - 1, 0, None]),
        (["1180591620717411303424", "7", "8"], ["1180591620717411303424", "7", "8"]),
        (["1", "x", ""], ["1", "x", ""]),
    ],
)
def test_csv_cells_become_numbers_where_all_are(tmp_path, cells, read):
    path = tmp_path / "a.csv"
    path.write_text("name,x\n" + "".join(f"1,{cell}\n" for cell in cells))
    table = read_columns(path, ["name"])
    assert table.column("x").to_pylist() == read
    assert table.column("name").to_pylist() == ["1"] * 3  # a text, whatever it looks like


def test_types_are_promoted_over_many_rows_and_files(tmp_path):
    """More rows than are held at a time: the first thousands are integers or missing, a later one is not."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"x": {i}, "y": null}}\n' for i in range(5000)) + '{"x": 0.5, "y": "b", "z": 1}\n')
    table = read_columns(path)
    assert table.slice(4999).to_pylist() == [{"x": 4999.0, "y": None, "z": None}, {"x": 0.5, "y": "b", "z": 1}]
    more = join_tables([table, pyarrow.table({"x": [1], "w": [True]})])
    assert more.slice(5001).to_pylist() == [{"x": 1.0, "y": None, "z": None, "w": True}]


def test_hidden_files_are_no_data(tmp_path):
    for name in ("a.csv", "b/c.CSV", ".x/d.csv", "b/._c.csv", "__MACOSX/e.csv", "f.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(path.relative_to(tmp_path)) for path in files_below(tmp_path, [".csv"])] == ["a.csv", "b/c.CSV"]
    hidden = tmp_path / ".cache"  # what counts is below the folder that is given
    hidden.mkdir()
    (hidden / "a.csv").touch()
    assert files_below(hidden, [".csv"]) == [hidden / "a.csv"]
