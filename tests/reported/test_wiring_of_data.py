"""Faults in the wiring of data that no test noticed, put in by hand: each test fails with its fault."""

import json

import datasets
import pytest
import torch
from data_fixtures import encoder, jsonl, own_caches, picture, records  # noqa: F401
from PIL import Image

from diffpo.curate.score import score_pairs
from diffpo.data import Pairs, PickAPic, load_splits
from diffpo.data.cache import EncodingCache
from diffpo.data.loader import PairLoader
from diffpo.errors import UserError
from diffpo.scorers.base import ImageScorer


def loader_of(source, encoder, dropout=0.0):  # noqa: F811
    table = load_splits(source).train
    cache = EncodingCache(table, source, encoder, seed=0)
    cache.fill()
    return PairLoader(table, cache.open(), seed=0, caption_dropout=dropout)


def test_images_are_judged_for_the_prompt_of_their_pair(records, jsonl, tmp_path):  # noqa: F811
    """Also where they have captions of their own."""
    asked = []

    class Asked:
        name, provenance = "asked", {"scorer": "asked"}

        frames, judge = None, ImageScorer.judge

        def score(self, images, prompts):
            asked.extend(prompts)
            return torch.arange(len(images)).float()

    rows = records(3, chosen_prompt=lambda i: f"chosen {i}", rejected_prompt=lambda i: f"rejected {i}")
    score_pairs(Pairs(path=jsonl(rows)), Asked(), tmp_path / "out")
    assert asked == [row["prompt"] for row in rows for _ in range(2)]


@pytest.mark.parametrize("shared", range(4))
def test_the_leak_check_sees_every_prompt(records, jsonl, shared):  # noqa: F811
    train = [row | {"prompt": f"train {i}"} for i, row in enumerate(records(4))]
    held_out = [row | {"prompt": f"held out {i}"} for i, row in enumerate(records(4))]
    held_out[shared]["prompt"] = f"TRAIN  {3 - shared}"
    source = Pairs(path=jsonl(train), validation_path=jsonl(held_out, "held_out.jsonl"))
    with pytest.raises(UserError, match=f"1 prompts .* for example 'train {3 - shared}'"):
        load_splits(source)


@pytest.mark.parametrize("change", ["label", "preference", "caption", "image", "segments", "weight"])
def test_a_run_knows_its_pairs_by_labels_captions_and_images(records, jsonl, encoder, tmp_path, change):  # noqa: F811
    """What resuming compares: it must change with whatever is learned from."""
    rows = [row | {"preference": 0.9, "segments": [1, 0], "weight": 1.0} for row in records(4)]
    source = Pairs(path=jsonl(rows), resolution=16)
    before = loader_of(source, encoder).identity
    assert loader_of(source, encoder).identity == before
    if change == "label":
        rows[2] |= {"chosen": rows[2]["rejected"], "rejected": rows[2]["chosen"]}
    elif change == "preference":
        rows[2]["preference"] = 0.8
    elif change == "caption":
        rows[2]["prompt"] += "!"
    elif change == "weight":
        rows[2]["weight"] = 0.5
    elif change == "segments":
        rows[2]["segments"] = [0, 1]
    else:
        Image.new("RGB", (24, 20), "red").save(tmp_path / "table" / rows[2]["rejected"])
    jsonl(rows)
    assert loader_of(source, encoder).identity != before


def test_a_run_on_pick_a_pic_notices_a_label_that_turned(picture, encoder, tmp_path):  # noqa: F811
    """There the order of the two images is the label: captions and preferences stay as they were."""
    images = [picture(tmp_path / f"{i}.png").read_bytes() for i in range(8)]
    rows = {"caption": ["a cat"] * 4, "jpg_0": images[:4], "jpg_1": images[4:], "label_0": [1.0, 0.0, 1.0, 0.0]}
    found = []
    for label in (1.0, 0.0):
        rows["label_0"][2] = label
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / f"table{label}.parquet")
        found.append(loader_of(PickAPic(path=str(tmp_path / f"table{label}.parquet"), resolution=16), encoder).identity)
    assert found[0] != found[1]


def test_no_caption_is_dropped_where_the_probability_is_zero(records, jsonl, encoder):  # noqa: F811
    """As for pairs that are held out."""
    kept, dropped = (loader_of(Pairs(path=jsonl(records(8)), resolution=16), encoder, p) for p in (0.0, 1.0))
    for epoch in range(3):
        batches = [loader.batch(range(8), epoch) for loader in (kept, dropped)]
        lengths = [batch.cond.chosen.mask.sum(1).tolist() for batch in batches]
        assert min(lengths[0]) > 1 and lengths[1] == [1] * 8


def test_the_written_provenance_is_that_of_the_content(records, jsonl, tmp_path):  # noqa: F811
    """A table that was moved is the same one: what is finished is not written again."""

    class Flat:
        name, provenance = "flat", {"scorer": "flat"}

        frames, judge = None, ImageScorer.judge

        def score(self, images, prompts):
            return torch.tensor([sum(image.getpixel((0, 0))) for image in images]).float()

    score_pairs(Pairs(path=jsonl(records(4))), Flat(), tmp_path / "out")
    record = json.loads((tmp_path / "out/train.provenance.json").read_text())
    (tmp_path / "table/pairs.jsonl").touch()
    score_pairs(Pairs(path=str(tmp_path / "table/pairs.jsonl")), Flat(), tmp_path / "out")
    assert json.loads((tmp_path / "out/train.provenance.json").read_text()) == record
