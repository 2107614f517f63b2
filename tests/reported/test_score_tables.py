"""Tables of scores that others made: what is no score is refused, with the file, and never ends in a traceback."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffpo.compare.compare import compare
from diffpo.errors import UserError
from diffpo.report.curves import read_metrics

GOOD = {
    **{"file": ["a.png", "b.png"], "prompt": ["p", "q"], "prompt_id": [0, 1], "seed": [0, 0], "scorer": ["x", "x"]},
    **{"score": [1.0, 2.0]},
}


def put(folder, model, columns, metadata=None):
    folder.mkdir()
    table = pa.table({**GOOD, "model": [model, model], **columns})
    pq.write_table(table.replace_schema_metadata(metadata), folder / "scores.parquet")
    return folder


@pytest.mark.parametrize(
    ("columns", "metadata", "message"),
    [
        ({"prompt": [None, "q"]}, None, "empty cells in prompt"),
        ({"model": [None, None]}, None, "empty cells in model"),
        ({"model": [["m"], ["m"]]}, None, "no score table"),
        ({"scorer": [None, "x"]}, None, "empty cells in scorer"),
        ({"score": ["1.0", "high"]}, None, "no score table"),
        ({"score": [None, 1.0]}, None, "no number to compare with"),
        ({"seed": [0.5, 1.0]}, None, "no score table"),
        ({"prompt_id": ["a", "b"]}, None, "no score table"),
        ({"file": [b"\xff", b"b"]}, None, "no score table"),
        ({}, {"diffpo": "{"}, "no score table"),
        ({}, {"diffpo": "[1]"}, "no provenance"),
        ({}, {"diffpo": json.dumps({"x": 3})}, "no provenance"),
    ],
)
def test_what_is_no_score_is_refused(tmp_path, columns, metadata, message):
    folders = [put(tmp_path / "a", "base", {}), put(tmp_path / "b", "tuned", columns, metadata)]
    with pytest.raises(UserError, match=message) as error:
        compare(folders)
    assert str(tmp_path / "b") in str(error.value)


def test_whole_numbers_and_numbers_as_text_are_scores(tmp_path):
    folders = [put(tmp_path / "a", "base", {"score": [1, 2]}), put(tmp_path / "b", "tuned", {"score": ["2.5", "3"]})]
    assert compare(folders).comparisons[0].results[0].difference.estimate == 1.25


def test_metrics_that_somebody_damaged(tmp_path):
    lines = [b'{"step": 1, "loss": 0.5}', b"\xff\xfe", b"[" * 100_000, b'{"step": 1' + b"0" * 400 + b', "loss": 1}']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([*lines, b'{"step": 2, "loss": 0.25}', b'{"step": 3, "lo']))
    assert read_metrics(tmp_path)["loss"][1].tolist() == [0.5, 0.25]
