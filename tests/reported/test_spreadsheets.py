"""Spreadsheet programs run cells that begin like a formula: names from others must not become one."""

import csv

import pytest
from judged import write_folder

from diffpo.compare.compare import Judging, compare
from diffpo.compare.export import cell, write_result

SCORES = {f"p{i}": [float(i % 3)] for i in range(6)}
LESS = {f"p{i}": [float(i % 3) - 1 - i / 10] for i in range(6)}


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_names_that_begin_like_a_formula_are_text(tmp_path, sign):
    """Model, scorer and category come from others; differences below 0 are numbers of ours."""
    evil = f'{sign}HYPERLINK("http://x","y")'
    folders = [
        write_folder(tmp_path / "a", "base", {evil: SCORES}),
        write_folder(tmp_path / "b", evil, {evil: LESS}),
    ]
    categories = {prompt: evil if i % 2 else "plain" for i, prompt in enumerate(SCORES)}
    found = compare(folders, judging=Judging(categories=categories, used_in_training=(evil,)))
    write_result(tmp_path / "c.csv", found)
    with open(tmp_path / "c.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["category"] for row in rows} == {"", "'" + evil, "plain"}
    for row in rows:
        assert row["model"] == row["scorer"] == "'" + evil
        texts = [value for value in row.values() if value[:1] in set("=+-@\t\r\n")]
        assert all(float(text) < 0 for text in texts), "only numbers may begin so"
    assert float(rows[0]["difference"]) == found.comparisons[0].results[0].difference.estimate < 0


def test_numbers_stay_numbers():
    assert (cell(-0.5), cell(3), cell(float("nan")), cell("a-b"), cell("-1")) == (-0.5, 3, "", "a-b", "'-1")
