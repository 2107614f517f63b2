"""Scoring pairs: what a kill costs, what the written table holds, what is refused."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from diffpo.config.options import make_scorer
from diffpo.curate.derived import ROWS_PER_FILE
from diffpo.curate.labels import Labelling, preferences
from diffpo.curate.score import score_pairs
from diffpo.data import Pairs, PickAPic, check_requires, load_splits
from diffpo.errors import UserError
from diffpo.media.frames import decode
from diffpo.scorers.base import ImageScorer

SHAPES = PickAPic(path="shapes:pairs", validation_split="validation", limit=6)
COSINE = "pickscore,path=shapes:pickscore,scale=cosine,device=cpu"


class Brightness:
    """The mean of the pixels, for the prompts that it was asked about; may fail at an image, or be no number there."""

    name = "brightness"

    def __init__(self, fail_at: int | None = None, nan_for: str | None = None, version: int = 1):
        self.provenance = {"scorer": self.name, "version": version}
        self.fail_at, self.nan_for, self.images, self.calls = fail_at, nan_for, 0, []

    frames, judge = None, ImageScorer.judge

    def score(self, images, prompts):
        if self.fail_at is not None and self.images + len(images) > self.fail_at:
            raise KeyboardInterrupt
        self.images += len(images)
        self.calls.append(len(images))
        means = [sum(image.convert("L").tobytes()) / (image.width * image.height) for image in images]
        return torch.tensor([math.nan if p == self.nan_for else m for m, p in zip(means, prompts, strict=True)])


@pytest.fixture
def score(tmp_path):
    """Score a source and read the table that is written."""

    def run(source, scorer, labelling=None, **options):
        done = score_pairs(source, scorer, tmp_path / "out", labelling, **options)
        return done, load_splits(Pairs(path=str(tmp_path / "out"), ties="keep")).train

    return run


def bright(cell) -> float:
    return Brightness().score([decode(cell)], [""]).double().item()


def test_the_written_table_has_what_smpo_needs(records, jsonl, score):
    source = Pairs(path=jsonl(records(5, user_id=str, chosen_seed=int)))
    done, table = score(source, Brightness(), batch=3)
    check_requires(frozenset({"preference"}), table, "smpo")
    before = load_splits(source).train
    for name in ("prompt", "chosen", "rejected", "user_id", "chosen_seed"):
        assert table.column(name) == before.column(name)  # images are the same absolute paths
    assert table.column("chosen_score") == [bright(cell) for cell in table.column("chosen")]
    scores = torch.tensor([table.column("chosen_score"), table.column("rejected_score")]).T
    assert (done.bounds.low, done.bounds.high) == pytest.approx((scores.min().item(), scores.max().item()))
    expected = preferences(scores.double().numpy(), done.bounds, 1.0)
    assert table.column("preference") == pytest.approx(expected.tolist(), abs=1e-4)
    assert {p < 0.5 for p in table.column("preference")} == {True, False}  # the scorer agrees with some, not with all


@pytest.mark.parametrize(("batch", "calls"), [(1, [1] * 10), (4, [4, 4, 2]), (64, [10])])
def test_the_scorer_gets_so_many_images_at_a_time(records, jsonl, score, batch, calls):
    scorer = Brightness()
    score(Pairs(path=jsonl(records(5))), scorer, batch=batch)
    assert scorer.calls == calls


def test_what_was_scored_before_a_kill_is_not_scored_again(records, jsonl, score, tmp_path):
    rows = ROWS_PER_FILE + 3  # two images each: two files, and a third one
    source = Pairs(path=jsonl(records(rows)))
    killed = Brightness(fail_at=ROWS_PER_FILE + 20)
    with pytest.raises(KeyboardInterrupt):
        score(source, killed, batch=10)
    assert not (tmp_path / "out").exists()
    again = Brightness()
    done, table = score(source, again, batch=10)
    assert killed.images >= ROWS_PER_FILE
    assert again.images == 2 * rows - ROWS_PER_FILE
    straight = [bright(cell) for cell in table.column("rejected")]
    assert table.column("rejected_score") == straight and len(done.splits["train"].kept) == rows


def test_other_labels_of_the_same_scores_cost_nothing(records, jsonl, score):
    source = Pairs(path=jsonl(records(6)))
    _, first = score(source, Brightness())
    idle = Brightness(fail_at=0)
    _, same = score(source, idle)
    assert same.column("preference") == first.column("preference")
    with pytest.raises(UserError, match=r"other settings.*--fresh"):
        score(source, idle, Labelling(temperature=0.1))
    _, sharper = score(source, idle, Labelling(temperature=0.1), fresh=True)
    for before, after in zip(first.column("preference"), sharper.column("preference"), strict=True):
        assert abs(after - 0.5) > abs(before - 0.5) and (after > 0.5) == (before > 0.5)
    other = Brightness(version=2)
    score(source, other, fresh=True)
    assert other.images == 12  # another scorer: nothing of the first is taken for its own


def test_the_scorers_order_exchanges_all_that_belongs_to_a_side(records, jsonl, score):
    mixed = records(
        6,
        chosen_seed=lambda i: i,
        rejected_seed=lambda i: 100 + i,
        rejected_prompt=lambda i: f"seen {i}",
        segments=lambda i: [1, 0, -1, 1],
        user_id=str,
    )
    source = Pairs(path=jsonl(mixed))
    _, human = score(source, Brightness())
    done, ordered = score(source, Brightness(), Labelling(order="scorer"), fresh=True)
    turned = [p < 0.5 for p in human.column("preference")]
    assert 0 < sum(turned) < 6 and f"rejected image in {sum(turned)} pairs" in str(done)
    for i, turn in enumerate(turned):
        before, after = human.rows[i], ordered.rows[i]
        a, b = ("rejected", "chosen") if turn else ("chosen", "rejected")
        for name in ("", "_seed", "_score"):
            assert after[f"chosen{name}"] == before[f"{a}{name}"]
            assert after[f"rejected{name}"] == before[f"{b}{name}"]
        assert after["segments"] == ([-1, 0, 1, -1] if turn else [1, 0, -1, 1])
        assert after["preference"] == pytest.approx(max(before["preference"], 1 - before["preference"]), abs=1e-12)
        assert after["user_id"] == before["user_id"]
    captions = [("seen", "a shape") if turn else ("a shape", "seen") for turn in turned]
    assert [c.startswith(w) for c, (w, _) in zip(ordered.captions("chosen").to_pylist(), captions, strict=True)] == [
        True
    ] * 6
    assert [c.startswith(w) for c, (_, w) in zip(ordered.captions("rejected").to_pylist(), captions, strict=True)] == [
        True
    ] * 6


def test_ties_are_dropped_unless_the_source_keeps_them_and_then_labelled(records, jsonl, score):
    path = jsonl(records(4, preference=[1.0, 0.5, 1.0, 1.0].__getitem__))
    assert len(score(Pairs(path=path), Brightness())[1]) == 3
    _, kept = score(Pairs(path=path, ties="keep"), Brightness(), fresh=True)
    assert len(kept) == 4 and 0.5 not in kept.column("preference")


def test_a_broken_image_drops_its_row_and_is_named(records, jsonl, score, tmp_path, caplog):
    path = jsonl(records(4, preference=[0.5, 1.0, 1.0, 1.0].__getitem__))
    (tmp_path / "table/img/rejected2.png").write_bytes(b"no image")
    with caplog.at_level("WARNING", "diffpo.data"):
        done, table = score(Pairs(path=path), Brightness())
    assert list(done.splits["train"].broken) == [2] and str(done).startswith("2 train pairs")
    assert "row 2 is dropped: rejected image" in caplog.text and "not an image" in caplog.text
    assert [Path(p).name for p in table.column("chosen")] == ["chosen1.png", "chosen3.png"]
    assert list(json.loads((tmp_path / "out/train.provenance.json").read_text())["broken"]) == ["2"]
    for i in (1, 3):
        (tmp_path / f"table/img/chosen{i}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"Every pair of .* has a broken image"):
        score(Pairs(path=path), Brightness(), fresh=True)


def test_scores_that_are_no_numbers_name_their_rows(records, jsonl, score, tmp_path):
    path = jsonl(records(6, preference=[0.5, *[1.0] * 5].__getitem__))
    with pytest.raises(
        UserError, match=r"brightness gives 4 images of .*row 1, chosen: nan; row 1, rejected: nan; row 4, .*float32"
    ):
        score(Pairs(path=path), Brightness(nan_for="a shape number 1"))
    assert not (tmp_path / "out").exists()


def test_the_held_out_split_is_normalised_like_the_training_split(records, jsonl, tmp_path):
    rows = records(9)
    for i, row in enumerate(rows):
        row["prompt"] = f"prompt {i}"
    held_out = jsonl(rows[6:], "held_out.jsonl")
    source = Pairs(path=jsonl(rows[:6]), validation_path=held_out)
    done = score_pairs(source, Brightness(), tmp_path / "out")
    assert str(done).startswith("6 train and 3 validation pairs")
    splits = load_splits(Pairs(path=str(tmp_path / "out"), validation_split="validation"))
    scores = [[bright(cell) for cell in splits.validation.column(side)] for side in ("chosen", "rejected")]
    expected = preferences(torch.tensor(scores).double().T.numpy(), done.bounds, 1.0)
    assert splits.validation.column("preference") == pytest.approx(expected.tolist(), abs=1e-4)
    trained = [*splits.train.column("chosen_score"), *splits.train.column("rejected_score")]
    assert (done.bounds.low, done.bounds.high) == (min(trained), max(trained))


def test_a_fraction_chooses_the_same_prompts_of_the_written_table(records, jsonl, tmp_path):
    rows = records(20)
    for i, row in enumerate(rows):
        row["prompt"] = f"prompt {i}"
    source = Pairs(path=jsonl(rows), validation_fraction=0.3)
    score_pairs(source, Brightness(), tmp_path / "out")
    written = load_splits(dataclasses.replace(source, path=str(tmp_path / "out")))
    assert written.validation.column("prompt") == load_splits(source).validation.column("prompt")


@pytest.mark.parametrize("spec", ["shapes", "shapes-utility", COSINE])
def test_real_scorers_on_pairs_of_the_shapes_world(spec, score):
    scorer = make_scorer(spec)
    done, table = score(SHAPES, scorer, Labelling(order="scorer"))
    assert str(done).startswith("6 train and 6 validation pairs")
    before = load_splits(SHAPES).train
    bytes_of = {frozenset(pair) for pair in zip(before.column("chosen"), before.column("rejected"), strict=True)}
    assert {frozenset(pair) for pair in zip(table.column("chosen"), table.column("rejected"), strict=True)} == bytes_of
    for side in ("chosen", "rejected"):
        images = [decode(cell) for cell in table.column(side)]
        torch.testing.assert_close(
            torch.tensor(table.column(f"{side}_score")),
            scorer.score(images, table.column("prompt")),
            rtol=1e-5,
            atol=1e-5,
        )
    assert all(p >= 0.5 for p in table.column("preference"))


def test_the_released_labels_of_pickscore(score, tmp_path):
    done, table = score(SHAPES, make_scorer(COSINE), Labelling(normalise="released"))
    assert (done.bounds.low, done.bounds.high) == (0.11543526500463486, 0.28201571106910706)
    for row in range(6):
        gap = table.column("chosen_score")[row] - table.column("rejected_score")[row]
        assert table.column("preference")[row] == pytest.approx(
            1 / (1 + math.exp(-gap / 0.16658044606447220)), abs=1e-9
        )
    record = json.loads((tmp_path / "out/train.provenance.json").read_text())
    assert record["recipe"]["scorer"]["weights"].startswith("blake2b:") and record["low"] == done.bounds.low
    assert record["recipe"]["temperature"] == 1.0 and record["source"]["path"] == "shapes:pairs"
    with pytest.raises(UserError, match="released"):
        score(SHAPES, make_scorer("shapes"), Labelling(normalise="released"))


def test_what_cannot_be_exchanged_is_said(records, jsonl, score):
    rows = records(6, chosen_seed=lambda i: f"seed {i}", rejected_seed=lambda i: [i])
    source = Pairs(path=jsonl(rows))
    with pytest.raises(UserError, match=r"different forms.*--order human"):
        score(source, Brightness(), Labelling(order="scorer"))
    assert len(score(source, Brightness())[1]) == 6


@pytest.mark.parametrize("column", ["chosen_score", "rejected_score"])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, None])
def test_a_users_own_scores_are_numbers(column, wrong, records, jsonl):
    path = jsonl(records(3, **{column: [0.9, wrong, 0.2].__getitem__}))
    with pytest.raises(UserError, match=rf"`{column}` is a number.*1 rows say something else .*in row 1"):
        load_splits(Pairs(path=path))


def test_a_batch_is_at_least_one_image(records, jsonl, score):
    with pytest.raises(UserError, match="batch is 0"):
        score(Pairs(path=jsonl(records(2))), Brightness(), batch=0)
