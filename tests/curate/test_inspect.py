"""What `diffpo data inspect` finds and prints."""

import io
import json
import tarfile

import pytest
from rich.console import Console

from diffpo.curate.inspect import guess_source, inspect, render
from diffpo.data import HPDv3, Pairs, PickAPic
from diffpo.errors import UserError

METHODS = {"dpo": frozenset(), "smpo": frozenset({"preference"}), "ppd": frozenset({"user_id"})}


@pytest.fixture
def report(records, jsonl, picture, tmp_path):
    rows = records(9, user_id=lambda i: f"user {i % 2}", preference=lambda i: 0.5 if i == 8 else 1.0)
    picture(tmp_path / "table/img/rejected1.png", 40, 20)
    (tmp_path / "table/img/chosen6.png").write_bytes(b"no image")
    held_out = jsonl([rows[0] | {"prompt": "A SHAPE number 0"}, rows[1] | {"prompt": "[new] prompt"}], "held_out.jsonl")
    return inspect(Pairs(path=jsonl(rows), validation_path=held_out))


def test_everything_is_counted(report):
    train = report.train
    assert (train.counts.rows, train.counts.ties, train.pairs, train.mismatched) == (9, 1, 8, 1)
    assert list(train.broken) == [6]
    assert train.sizes == {(24, 20): 13, (40, 20): 1}
    assert (train.prompts, train.users) == (3, 2)
    assert report.validation.pairs == 2
    assert report.shared == ["a shape number 0"]
    assert report.missing(METHODS) == {"dpo": [], "smpo": [], "ppd": []}


def test_the_rendering_names_what_is_wrong(report):
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(render(report, METHODS | {"dcpo": frozenset({"chosen_prompt", "rejected_prompt"})}))
    text = console.export_text()
    for part in (
        "chosen6.png: not an image",
        "1 prompts stand in both splits",
        "24x20: 93%",
        "chosen_prompt, rejected_prompt",
        "none: ready",
    ):
        assert part in text


def test_the_layout_is_guessed_from_the_columns(records, jsonl, tmp_path):
    rows = records(2)
    assert guess_source(jsonl(rows)) == Pairs(path=str(tmp_path / "table/pairs.jsonl"))
    pickapic = [{"caption": "a", "jpg_0": row["chosen"], "jpg_1": row["rejected"], "label_0": 0} for row in rows]
    source = guess_source(jsonl(pickapic, "pickapic.jsonl"))
    assert isinstance(source, PickAPic)
    assert inspect(source).train.sizes == {(24, 20): 4}
    with pytest.raises(UserError, match="fit no layout: pairs needs chosen, rejected, prompt; pickapic needs jpg_0"):
        guess_source(jsonl([{"text": "a"}], "texts.jsonl"))


def test_the_layout_of_hpdv3_is_guessed(records, jsonl):
    rows = [{"prompt": "a", "path1": row["chosen"], "path2": row["rejected"]} for row in records(2)]
    source = guess_source(jsonl(rows, "hpdv3.jsonl"))
    assert isinstance(source, HPDv3)
    assert inspect(source).train.sizes == {(24, 20): 4}


def test_a_layout_that_has_to_be_imported_is_named(tmp_path, picture):
    picture(tmp_path / "folder/w/a.png")
    picture(tmp_path / "folder/l/a.png")
    with pytest.raises(UserError, match=r"twin-folders: run `diffpo data import .*folder --layout twin-folders --out"):
        guess_source(str(tmp_path / "folder"))
    ranking = {"prompt": "a", "image_path": ["a", "b"], "rank": [1, 2], "raw_annotations": [{"rank": [1, 2]}]}
    (tmp_path / "test.json").write_text(json.dumps([ranking]))
    with pytest.raises(
        UserError, match=r"(?s)fit no layout: .*run `diffpo data import .*test.json --layout hpdv2 --out"
    ):
        guess_source(str(tmp_path / "test.json"))
    with tarfile.open(tmp_path / "a.tar", "w"):
        pass
    with pytest.raises(UserError, match=r"(?s)found .tar.*--layout webdataset --out"):
        guess_source(str(tmp_path / "a.tar"))


def test_what_fits_nothing_is_told_all_there_is(jsonl):
    with pytest.raises(
        UserError, match=r"fit no layout.*hpdv3 needs path1.*--columns prompt=text,chosen=COLUMN,rejected=COLUMN"
    ):
        guess_source(jsonl([{"text": "a"}], "texts.jsonl"))
