"""Agreement of scorers with people's labels: counted by hand, resampled by prompt, refused where no person labelled."""

import json
import math
import sys

import numpy as np
import pytest
import torch

from diffpo.__main__ import main
from diffpo.curate.agreement import (
    Counting,
    agreement,
    agreement_table,
    credits,
    prompt_interval,
    verdicts_of,
)
from diffpo.curate.labels import Labelling
from diffpo.curate.score import score_pairs
from diffpo.data import Pairs
from diffpo.errors import UserError
from diffpo.scorers import ShapesUtility
from diffpo.scorers.base import ImageScorer


class Told:
    """Scores that it was told, in the order of the images: chosen, rejected, chosen, ..."""

    def __init__(self, scores, name="told"):
        self.name, self.scores, self.asked = name, scores, 0
        self.provenance = {"scorer": name, "scores": str(scores)}

    frames, judge = None, ImageScorer.judge

    def score(self, images, prompts):
        self.asked += len(images)
        return torch.tensor(self.scores[self.asked - len(images) : self.asked])


def test_verdicts_by_hand():
    """sigmoid(1) = 0.731: p - (1 - p) = 0.462; sigmoid(0.1) = 0.525: 0.05."""
    scores = np.array([[2.0, 1.0], [1.0, 2.0], [1.0, 1.0], [1.1, 1.0]])
    assert verdicts_of(scores, 0.0).tolist() == [1, -1, 0, 1]
    assert verdicts_of(scores, 0.1).tolist() == [1, -1, 0, 0]
    assert verdicts_of(scores, 0.47).tolist() == [0, 0, 0, 0]
    assert verdicts_of(np.array([[1e-30, 0.0], [-800.0, 800.0]]), 0.0).tolist() == [1, -1]


def test_credits_of_all_nine_cases():
    labels = np.repeat([1, 0, -1], 3)
    verdicts = np.tile([1, 0, -1], 3)
    assert credits(labels, verdicts).tolist() == [1, 0.5, 0, 0.5, 1, 0.5, 0, 0.5, 1]


def test_a_table_by_hand(records, jsonl):
    """Prompts 0, 1, 2, 0, 1, 2; labels: chosen, rejected, tie, chosen, chosen, chosen."""
    preference = [1.0, 0.2, 0.5, 1.0, 0.9, 1.0]
    source = Pairs(path=jsonl(records(6, preference=lambda i: preference[i])), ties="keep")
    right, half = [5.0, 1.0], [2.0, 2.0]
    scorer = Told([*right, *right, *right, *half, *right, 1.0, 4.0])
    found = agreement(source, [scorer], Counting(resamples=200), batch=4)
    only = found.scorers[0]
    # agree: rows 0 and 4; one says tie: rows 2 and 3; disagree: rows 1 and 5
    assert (only.agree, only.half, only.disagree, only.agreement) == (2, 2, 2, 0.5)
    assert (found.n_pairs, found.n_prompts, found.label_ties, only.scorer_ties) == (6, 3, 1, 1)
    dropped = agreement(Pairs(path=source.path), [Told([*right, *right, *half, *right, 1.0, 4.0])])
    assert (dropped.n_pairs, dropped.label_ties, dropped.scorers[0].agreement) == (5, 0, 0.5)


def test_scores_are_kept_and_all_scorers_judge_the_same_pairs(records, jsonl, tmp_path):
    rows = records(5)
    source = Pairs(path=jsonl(rows))
    (tmp_path / "table" / rows[2]["chosen"]).write_bytes(b"no image")
    good, bad = (Told([*pair * 2, 0.5, *pair * 2], name) for name, pair in (("good", [1.0, 0.0]), ("bad", [0.0, 1.0])))
    found = agreement(source, [good, bad])
    assert [(row.scorer, row.agreement) for row in found.scorers] == [("good", 1.0), ("bad", 0.0)]
    assert found.n_pairs == 4 and list(found.broken) == [2]
    assert agreement(source, [good, bad]) == found and good.asked == bad.asked == 9
    assert found.scorers[1].provenance == bad.provenance
    table = agreement_table(found)
    assert table.row_count == 2 and list(table.columns[1].cells) == ["100.0%", "0.0%"]


def test_the_interval_resamples_prompts():
    """Ten pairs of one prompt are one observation: the interval is that of the prompts, not of the pairs."""
    values = np.repeat([1.0, 0.0] * 50, 10)
    prompts = [f"prompt {i // 10}" for i in range(1000)]
    low, high = prompt_interval(values, prompts, 0.95, 4000, 0)
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.05, 0.5 + 1.96 * 0.05), abs=0.012)
    apart = prompt_interval(values, [str(i) for i in range(1000)], 0.95, 4000, 0)
    assert apart == pytest.approx((0.5 - 1.96 * 0.0158, 0.5 + 1.96 * 0.0158), abs=0.006)
    assert all(math.isnan(bound) for bound in prompt_interval(np.ones(3), ["a"] * 3, 0.95, 100, 0))
    uneven = prompt_interval(np.array([1.0, 1.0, 1.0, 0.0]), ["a", "a", "a", "b"], 0.95, 4000, 0)
    assert uneven == (0.0, 1.0)


def test_labels_of_a_scorer_are_refused(records, jsonl, tmp_path):
    score_pairs(Pairs(path=jsonl(records(4))), Told([1.0, 0.0, 0.5, 0.2] * 2), tmp_path / "out", Labelling())
    with pytest.raises(UserError, match="a scorer labelled"):
        agreement(Pairs(path=str(tmp_path / "out")), [Told([1.0, 0.0] * 4)])


def test_the_command(tmp_path, monkeypatch, capsys):
    """Ties of people are judged unless they are dropped."""
    monkeypatch.chdir(tmp_path)
    counts = []
    for more in ([], ["--ties", "drop"]):
        argv = ["diffpo", "data", "agreement", "shapes:pairs", "-s", "shapes", "-s", "shapes-utility", "--limit", "12"]
        monkeypatch.setattr(sys, "argv", [*argv, *more])
        with pytest.raises(SystemExit) as ended:
            main()
        out = capsys.readouterr().out
        assert not ended.value.code and "shapes-utility" in out and "next: diffpo data score shapes:pairs" in out
        found = json.loads((tmp_path / "agreement.json").read_text())
        counts.append((found["n_pairs"], found["label_ties"]))
        assert [row["scorer"] for row in found["scorers"]] == ["shapes", "shapes-utility"]
        assert found["scorers"][1]["provenance"] == ShapesUtility().provenance
        assert ("wrote agreement.json (replaced an earlier file)" in out) == bool(more)
    assert counts[0][0] == counts[1][0] == 12 and counts[0][1] > counts[1][1] == 0


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", f"diffpo data agreement nowhere -s shapes --out {tmp_path}".split())
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "is a folder. Name a file to write" in capsys.readouterr().err


def test_what_is_refused(records, jsonl):
    source = Pairs(path=jsonl(records(2)))
    with pytest.raises(UserError, match="no finite numbers"):
        agreement(source, [Told([1.0, math.nan, 1.0, 0.0])])
    with pytest.raises(UserError, match="each once; got told, told"):
        agreement(source, [Told([]), Told([])])
    with pytest.raises(UserError, match="got none"):
        agreement(source, [])
    with pytest.raises(UserError, match=r"tie_threshold is 2\.0; it must be at least 0 and at most 1"):
        Counting(tie_threshold=2.0)
