"""Prompt sets from every kind of file, and by name."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffpo.errors import UserError
from diffpo.media.prompts import READERS, PromptSet, load_prompts, read_prompts, write_prompts
from diffpo.worlds.shapes.scenes import sample_prompts, split_captions

PROMPTS = ["a red, round thing", "“quoted” — café", "猫"]

FILES = {
    ".txt": lambda p: "\n".join([*p, "", p[0]]).encode(),
    ".json": lambda p: json.dumps([p[0], {"prompt": p[1]}, {"caption": p[2]}]).encode(),
    ".jsonl": lambda p: "\n".join(json.dumps({"id": i, "text": x}) for i, x in enumerate(p)).encode(),
    ".csv": lambda p: ("id,prompt\n" + "".join(f'{i},"{x}"\n' for i, x in enumerate(p))).encode(),
    ".tsv": lambda p: ("Prompt\tCategory\n" + "".join(f"{x}\tany\n" for x in p)).encode(),
}


@pytest.mark.parametrize("suffix", FILES)
def test_every_kind_of_file(tmp_path, suffix):
    path = tmp_path / f"prompts{suffix}"
    path.write_bytes(FILES[suffix](PROMPTS))
    prompts = load_prompts(path)
    assert prompts.prompts == tuple(PROMPTS)
    assert prompts.name == path.name


def test_parquet(tmp_path):
    path = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"caption": [*PROMPTS, None], "other": [1, 2, 3, 4]}), path)
    assert load_prompts(path).prompts == tuple(PROMPTS)


def test_columns_are_kept_but_no_images(tmp_path):
    path = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"caption": PROMPTS, "style": ["a", "b", None], "jpg_0": [b"x", b"y", b"z"]}), path)
    prompts = load_prompts(path)
    assert prompts.details == ({"style": "a"}, {"style": "b"}, {"style": None})
    assert prompts.categories == ("a", "b", "")
    (tmp_path / "plain.txt").write_text("x\ny")
    assert load_prompts(tmp_path / "plain.txt").categories == ("", "")


def test_details_travel_with_the_images(tmp_path):
    prompts = PromptSet("x", ("a", "“b”"), ({"tag": "counting", "include": [{"class": "cat", "count": 2}]}, {}))
    write_prompts(tmp_path, prompts)
    known = read_prompts(tmp_path)
    assert known["a"] == {"prompt_id": 0, **prompts.details[0]} and known["“b”"] == {"prompt_id": 1}
    assert read_prompts(tmp_path / "nowhere") == {}
    write_prompts(tmp_path / "never", PromptSet.of(["a"]))
    assert not (tmp_path / "never").exists()


def test_every_reader_is_tested():
    assert {*FILES, ".parquet"} == set(READERS)


def test_a_prompt_counts_once_and_the_hash_is_of_the_prompts():
    prompts = PromptSet.of(["a", "b", "a"], "x")
    assert prompts.prompts == ("a", "b") and len(prompts) == 2
    assert prompts.hash == PromptSet.of(["a", "b"], "y").hash != PromptSet.of(["b", "a"]).hash


def test_named_sets():
    assert load_prompts("shapes:validation").prompts == split_captions("validation")
    assert load_prompts("shapes:heldout:20").prompts == tuple(sample_prompts("heldout", 20))
    assert load_prompts("shapes:heldout:20").prompts == load_prompts("shapes:heldout:40").prompts[:20]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("shape:heldout", r"Did you mean shapes:heldout"),
        ("shapes:held-out", r"Did you mean shapes:heldout.*shapes:validation"),
        ("shapes:heldout:0", r"count must be a number from 1"),
        ("shapes:heldout:ten", r"got 'ten'"),
        ("partiprompt", r"Did you mean partiprompts\?.*shapes:.*hpdv2"),
        ("nowhere.txt", r"no prompt file nowhere\.txt"),
    ],
)
def test_unknown_sets(spec, message):
    with pytest.raises(UserError, match=message):
        load_prompts(spec)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "\n  \n", "holds no prompt"),
        ("a.json", '{"prompt": "x"}', "must hold a list"),
        ("a.json", "[1]", "row 1 must be a text"),
        ("a.jsonl", '{"prompt": "x"}\n{"promt": "y"}', "line 2 has no text under prompt"),
        ("a.jsonl", '{"prompt": ', "line 1 is not JSON"),
        ("a.csv", "id,name\n1,x\n", "line 2 has no text"),
        ("a.xlsx", "x", r"\.xlsx file; use one of"),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_prompts(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "a cat\na dog\n"),
        ("a.json", '["a cat", "a dog"]'),
        ("a.jsonl", '"a cat"\n"a dog"\n'),
        ("A.TXT", "a cat\r\na dog\r\n"),
        ("a.CSV", "prompt,x\na cat,1\na dog,2\n"),
        ("a.Tsv", "prompt\tx\na cat\t1\na dog\t2\n"),
    ],
)
def test_a_byte_order_mark_is_no_part_of_a_prompt(name, text, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8-sig", newline="")
    assert load_prompts(tmp_path / name).prompts == ("a cat", "a dog")
