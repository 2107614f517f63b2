"""Dual captions: the presets, what happens to rows without a text, and that nothing is captioned twice."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from diffpo.captioners import ShapesCaptioner, ShapesPerturber
from diffpo.captioners.base import Captioner
from diffpo.curate.caption import BOTH, PRESETS, caption_pairs, perturb_pairs
from diffpo.curate.inspect import guess_source
from diffpo.data.splits import check_requires, load_table
from diffpo.errors import UserError
from diffpo.worlds.shapes.verify import verify

ROWS = 80


class Reader:
    """A captioner that says what it was given; nothing where that is in `silent`; it may stop after some images."""

    batch, frames, describe = 4, 1, Captioner.describe

    def __init__(self, silent=(), stop_after=10**9):
        self.silent, self.stop_after = silent, stop_after
        self.asked: list[int] = []

    @property
    def provenance(self):
        return {"captioner": "reader"}

    def caption(self, images, prompts, keys):
        assert 0 < len(images) == len(prompts) == len(keys) <= self.batch
        self.asked += keys
        if len(self.asked) > self.stop_after:
            raise UserError("stop")
        words = [f"{p}, mean {np.asarray(image).mean():.3f}" for image, p in zip(images, prompts, strict=True)]
        return ["" if text in self.silent else text for text in words]


class Shouter:
    """A perturber that writes in capitals, with the key; `same` captions come out as they were, `silent` ones empty."""

    batch = 3

    def __init__(self, same=(), silent=()):
        self.same, self.silent = same, silent

    @property
    def provenance(self):
        return {"perturber": "shouter"}

    def perturb(self, captions, keys):
        assert 0 < len(captions) == len(keys) <= self.batch
        found = zip(captions, keys, strict=True)
        return ["" if c in self.silent else c if c in self.same else f"{c.upper()} {k}" for c, k in found]


def read(folder, split="train"):
    return load_table(guess_source(str(folder), split), str(folder), split)


def said(table, side):
    """What `Reader` says of each image of one side."""
    means = [np.asarray(Image.open(path)).mean() for path in table.column(side)]
    return [f"{prompt}, mean {mean:.3f}" for prompt, mean in zip(table.column("prompt"), means, strict=True)]


@pytest.fixture
def source(records, jsonl):
    return guess_source(jsonl(records(ROWS)))


def test_both_images_get_the_captioners_words(source, tmp_path):
    (path,) = caption_pairs(source, Reader(), tmp_path / "out")
    table = read(tmp_path / "out")
    assert path.parent == tmp_path / "out"
    for side in BOTH:
        assert table.column(f"{side}_prompt") == table.captions(side).to_pylist() == said(table, side)
    before = read(source.path)
    assert all(table.column(name) == before.column(name) for name in ("prompt", *BOTH))


def test_perturbation_keeps_the_prompt_for_the_chosen_image(source, tmp_path):
    perturb_pairs(source, Shouter(), tmp_path / "out", "perturbation")
    table = read(tmp_path / "out")
    prompts = table.column("prompt")
    assert table.column("chosen_prompt") == prompts
    made = table.column("rejected_prompt")
    assert [text.rpartition(" ")[0] for text in made] == [prompt.upper() for prompt in prompts]
    assert len(set(made)) == ROWS  # prompts repeat; what is made of them does not


@pytest.mark.parametrize(("preset", "side"), [("hybrid", "rejected"), ("hybrid-chosen", "chosen")])
def test_hybrids_perturb_captions_of_images(source, tmp_path, preset, side):
    caption_pairs(source, Reader(), tmp_path / "captioned")
    perturb_pairs(guess_source(str(tmp_path / "captioned")), Shouter(), tmp_path / "out", preset)
    table = read(tmp_path / "out")
    assert table.column("chosen_prompt") == said(table, "chosen")
    made = [text.rpartition(" ")[0] for text in table.column("rejected_prompt")]
    assert made == [text.upper() for text in said(table, side)]
    record = json.loads((tmp_path / "out" / "train.provenance.json").read_text())
    assert record["recipe"] == {"made by": "diffpo data perturb", "preset": preset, "perturber": "shouter"}
    assert record["source"]["provenance"]["recipe"]["captioner"] == "reader"


@pytest.mark.parametrize("preset", ["hybrid", "hybrid-chosen"])
def test_hybrids_need_captions(source, tmp_path, preset):
    with pytest.raises(UserError, match=r"has no chosen_prompt.*diffpo data caption.*--preset perturbation"):
        perturb_pairs(source, Shouter(), tmp_path / "out", preset)
    assert PRESETS == ("perturbation", "hybrid", "hybrid-chosen")


def test_what_is_finished_is_not_captioned_again(source, tmp_path):
    killed, again = Reader(stop_after=ROWS + 70), Reader()
    with pytest.raises(UserError, match="stop"):
        caption_pairs(source, killed, tmp_path / "out")
    caption_pairs(source, again, tmp_path / "out")
    assert len(again.asked) == ROWS - 64  # the chosen side was finished, and a file of the other one
    assert not set(again.asked) & set(killed.asked[:ROWS])
    third = Reader()
    caption_pairs(source, third, tmp_path / "out")
    caption_pairs(source, third, tmp_path / "elsewhere")
    assert third.asked == [] and read(tmp_path / "out").captions("chosen").to_pylist() == said(
        read(tmp_path / "out"), "chosen"
    )


def test_a_few_empty_captions_leave_the_prompt_and_are_named(source, tmp_path, caplog):
    before = read(source.path)
    silent = {said(before, "rejected")[4], said(before, "chosen")[6]}
    caption_pairs(source, Reader(silent), tmp_path / "out")
    assert "2 of 80 rows" in caplog.text and "(rows 4, 6)" in caplog.text
    table = read(tmp_path / "out")
    assert table.column("rejected_prompt")[4] is None and table.column("chosen_prompt")[6] is None
    assert table.captions("rejected")[4].as_py() == table.column("prompt")[4]
    assert table.captions("rejected")[6].as_py() == said(table, "rejected")[6]
    assert json.loads((tmp_path / "out" / "train.provenance.json").read_text())["empty"] == [4, 6]


def test_many_empty_captions_are_an_error(source, tmp_path):
    with pytest.raises(UserError, match=r"9 of 80 rows.*\(rows 0, 1, 2, 3, 4, .*no table is written"):
        caption_pairs(source, Reader(silent=said(read(source.path), "chosen")[:9]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_broken_image_gets_no_caption(source, tmp_path, caplog):
    (tmp_path / "table" / "img" / "rejected7.png").write_bytes(b"no image")
    caption_pairs(guess_source(source.path), Reader(), tmp_path / "out")
    table = read(tmp_path / "out")
    assert table.column("rejected_prompt")[7] is None and table.column("chosen_prompt")[7] == said_row(table, 7)
    assert "row 7 gets no rejected caption: not an image" in caplog.text


def said_row(table, row):
    return f"{table.column('prompt')[row]}, mean {np.asarray(Image.open(table.column('chosen')[row])).mean():.3f}"


def test_unchanged_captions_are_counted(records, jsonl, tmp_path, caplog):
    rows = records(20)
    rows[0]["prompt"], rows[1]["prompt"], rows[2]["prompt"] = "one", "two", "three"
    source = guess_source(jsonl(rows))
    perturb_pairs(source, Shouter(same=("one", "two"), silent=("three",)), tmp_path / "out", "perturbation")
    assert "2 of 20 captions came out as they were" in caplog.text
    record = json.loads((tmp_path / "out" / "train.provenance.json").read_text())
    assert (record["unchanged"], record["empty"]) == (2, [2])


def test_an_empty_prompt_is_not_perturbed(records, jsonl, tmp_path):
    rows = records(20)
    rows[3]["prompt"] = " "
    perturb_pairs(guess_source(jsonl(rows)), Shouter(), tmp_path / "out", "perturbation")
    table = read(tmp_path / "out")
    assert table.column("rejected_prompt")[3] is None and table.captions("rejected")[3].as_py() == " "


def test_a_held_out_table_is_captioned_too(records, jsonl, tmp_path):
    rows = records(12)
    for i, row in enumerate(rows):
        row["prompt"] = f"prompt {i}"
    source = guess_source(jsonl(rows[:8], "train.jsonl"))
    source = replace(source, validation_path=jsonl(rows[8:], "validation.jsonl"))
    assert len(caption_pairs(source, Reader(), tmp_path / "out")) == 2
    assert [len(read(tmp_path / "out", split)) for split in ("train", "validation")] == [8, 4]
    validation = read(tmp_path / "out", "validation")
    assert validation.captions("chosen").to_pylist() == said(validation, "chosen")


def test_the_shapes_worlds_hybrid(tmp_path):
    """End to end on the shipped pairs: chosen captions are true of their images, rejected ones are not of theirs."""
    source = replace(guess_source("shapes:pairs"), limit=40)
    caption_pairs(source, ShapesCaptioner(), tmp_path / "captioned")
    captioned = replace(guess_source(str(tmp_path / "captioned")), limit=40)
    perturb_pairs(captioned, ShapesPerturber(level="strong"), tmp_path / "out", "hybrid")
    table = read(tmp_path / "out")
    from diffpo.media.frames import decode

    right, before = [], []
    for i in range(40):
        row = table.rows[i]
        right.append(verify(decode(row["chosen"]), row["chosen_prompt"]).score)
        before.append(verify(decode(row["chosen"]), row["prompt"]).score)
        assert not verify(decode(row["rejected"]), row["rejected_prompt"]).passed
    assert np.mean(right) > np.mean(before) and np.mean(np.array(right) == 1) > 0.8


DCPO = frozenset({"chosen_prompt", "rejected_prompt"})


def test_a_missing_or_empty_caption_in_a_table_is_the_prompt_and_counted(records, jsonl, caplog):
    own = ["its own", None, "", " \n", "another"]
    table = read(jsonl(records(5, rejected_prompt=lambda i: own[i], chosen_prompt=lambda i: f"chosen {i}")))
    prompts = table.column("prompt")
    assert table.captions("rejected").to_pylist() == ["its own", *prompts[1:4], "another"]
    assert table.captions("chosen").to_pylist() == [f"chosen {i}" for i in range(5)]
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"{table.path}: 3 of 5 rejected captions are missing or empty: the prompt stands in."
    ]
    check_requires(DCPO, table, "dcpo")


def test_a_csv_leaves_captions_out_too(records, jsonl, tmp_path):
    rows = records(3)
    lines = [f"{row['prompt']},{row['chosen']},{row['rejected']},{'own' if i else ''}" for i, row in enumerate(rows)]
    (tmp_path / "table" / "pairs.csv").write_text("\n".join(["prompt,chosen,rejected,chosen_prompt", *lines]))
    table = read(tmp_path / "table" / "pairs.csv")
    assert table.captions("chosen").to_pylist() == [rows[0]["prompt"], "own", "own"]


def test_a_column_without_any_caption_is_not_enough_for_a_method_that_needs_them(records, jsonl):
    table = read(jsonl(records(3, chosen_prompt=str, rejected_prompt=lambda i: ["", None, " "][i])))
    with pytest.raises(UserError, match=r"dcpo needs captions.*every `rejected_prompt` is missing.*method=dpo"):
        check_requires(DCPO, table, "dcpo")
    check_requires(frozenset(), table, "dpo")


def test_captions_are_texts(records, jsonl):
    with pytest.raises(
        UserError, match=r"`chosen_prompt` holds captions, texts or null; 3 rows say something else \(0 in row 0"
    ):
        read(jsonl(records(3, chosen_prompt=int)))
