"""Weights of pairs: VideoDPO's and LambdaRank's by hand, and the tables that carry them into training."""

import json
import math

import numpy as np
import pytest
from runs import World, forget_accelerator, metrics

from diffpo.curate.weights import LambdaWeights, VideoDPOWeights, weigh_pairs
from diffpo.data import Pairs, load_splits
from diffpo.errors import UserError

SCORES = np.array([[0.501, 0.302], [0.509, 0.301], [0.502, 0.111], [0.29, 0.29]])
"""Bins of 0.01: 0.50 three times, 0.30 twice, 0.29 twice, 0.11 once, of eight scores."""


def test_videodpo_by_hand():
    """With alpha 1, beta = 3/8: pair 0 weighs (3/8) / sqrt(3/8 2/8) = sqrt(3/2), pair 2 sqrt(3), pair 3 3/2."""
    weights = VideoDPOWeights(alpha=1.0).weigh(SCORES, [""] * 4, SCORES)
    assert weights == pytest.approx([math.sqrt(1.5), math.sqrt(1.5), math.sqrt(3), 1.5], rel=1e-12)
    squared = VideoDPOWeights(alpha=2.0).weigh(SCORES, [""] * 4, SCORES)
    assert squared == pytest.approx([1.5, 1.5, 3, 2.25], rel=1e-12)
    assert VideoDPOWeights(alpha=0.0).weigh(SCORES, [""] * 4, SCORES).tolist() == [1] * 4
    halved = VideoDPOWeights(alpha=1.0, beta=3 / 16).weigh(SCORES, [""] * 4, SCORES)
    assert halved == pytest.approx(weights / 2, rel=1e-12)


def test_a_score_that_training_has_not_counts_as_one():
    """(3/8) / sqrt(1/8 3/8), below, between and above the bins that were counted."""
    new = np.array([[0.05, 0.505], [0.4, 0.505], [0.9, 0.505]])
    weights = VideoDPOWeights(alpha=1.0).weigh(new, [""] * 3, SCORES)
    assert weights == pytest.approx([math.sqrt(3)] * 3, rel=1e-12)


def test_bins_without_company_are_refused():
    with pytest.raises(UserError, match=r"bins of 0.01 are too narrow: no two of the 4 scores.* between 18 and 24"):
        VideoDPOWeights().weigh(np.array([[20.0, 18.0], [24.0, 21.0]]), ["", ""], np.array([[20.0, 18.0], [24, 21]]))


def test_lambda_by_hand():
    """Prompt a: scores 1, 0.5, 0 have ranks 1, 2, 3, gains 1, sqrt(2) - 1, 0 and discounts 1/log 2, 1/log 3, 1/log 4.

    Prompt b: a pair of equal scores weighs nothing.
    """
    scores, prompts = np.array([[1.0, 0.0], [0.5, 0.0], [1.0, 0.5], [0.5, 0.5]]), ["a", "a", "a", "b"]
    gain, discount = [1, math.sqrt(2) - 1, 0], [1 / math.log(2), 1 / math.log(3), 1 / math.log(4)]
    by_hand = np.array([(gain[i] - gain[j]) * (discount[i] - discount[j]) for i, j in ((0, 2), (1, 2), (0, 1))] + [0])
    weights = LambdaWeights().weigh(scores, prompts, scores)
    assert weights == pytest.approx(by_hand / by_hand.mean(), rel=1e-12)
    assert weights[0] == weights.max() and weights.mean() == pytest.approx(1)
    back = LambdaWeights().weigh(scores[:, ::-1], prompts, scores)
    assert back == pytest.approx(weights, rel=1e-12), "whichever side is called chosen"


@pytest.mark.parametrize(("scores", "told"), [([[2, 2]], "all scores are 2"), ([[1, 1], [2, 2]], "two equal scores")])
def test_what_ranks_nothing_is_refused(scores, told):
    with pytest.raises(UserError, match=told):
        LambdaWeights().weigh(np.array(scores, float), ["a", "b"][: len(scores)], np.array(scores, float))


def test_a_table_gets_weights_measured_by_its_training_split(records, jsonl, tmp_path):
    def scored(rows, pairs):
        return [row | {"chosen_score": a, "rejected_score": b} for row, (a, b) in zip(rows, pairs, strict=True)]

    rows = scored(records(5), [*SCORES.tolist(), [0.4, 0.505]])
    rows[4]["prompt"] = "held out"
    source = Pairs(path=jsonl(rows[:4]), validation_path=jsonl(rows[4:], "held_out.jsonl"))
    done = weigh_pairs(source, VideoDPOWeights(alpha=1.0), tmp_path / "weighed")
    assert "4 train pairs weigh 1.22 to 1.73" in str(done) and len(done.files) == 2
    made = load_splits(Pairs(path=str(tmp_path / "weighed"), validation_split="validation"))
    assert made.train.column("weight") == pytest.approx([math.sqrt(1.5), math.sqrt(1.5), math.sqrt(3), 1.5])
    assert made.validation.column("weight") == pytest.approx([math.sqrt(3)])
    record = json.loads((tmp_path / "weighed" / "train.provenance.json").read_text())["recipe"]
    assert (record["by"], record["alpha"], record["bin"]) == ("videodpo", 1.0, 0.01)
    with pytest.raises(UserError, match=r"other settings.*--fresh"):
        weigh_pairs(source, LambdaWeights(), tmp_path / "weighed")


def test_scores_are_needed(records, jsonl, tmp_path):
    with pytest.raises(UserError, match=r"no column chosen_score and no column rejected_score.*diffpo data score"):
        weigh_pairs(Pairs(path=jsonl(records(2))), LambdaWeights(), tmp_path / "weighed")


def test_from_the_command_line_into_training(tmp_path, capsys, monkeypatch):
    """The first loss, log 2 for each pair, is log 2 times the mean weight: the number of pairs stays what it was."""
    from diffpo.__main__ import main

    world = World.make(tmp_path, rows=8)
    table, out = world.folder / "pairs" / "pairs.jsonl", tmp_path / "weighed"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    scored = [json.dumps(row | {"chosen_score": i % 3, "rejected_score": -i % 2}) for i, row in enumerate(rows)]
    table.write_text("\n".join(scored))
    argv = ["diffpo", "data", "weight", str(table), "--by", "videodpo,alpha=1,bin=1", "--out", str(out)]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert "8 train pairs weigh" in capsys.readouterr().out
    weights = load_splits(Pairs(path=str(out))).train.column("weight")
    (line,) = metrics(world.train("run", {"data.path": str(out), "train.batch": 8, "train.steps": 1}))
    assert len(set(weights)) > 1
    assert line["loss"] == pytest.approx(math.log(2) * sum(weights) / 8, rel=1e-5)
    assert line["rewards/accuracies"] == 0.5
    forget_accelerator()
