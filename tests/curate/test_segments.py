"""Labels of segments: how clips are cut, what is kept of answers, corrections and labels by hand, what is refused."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace

import numpy as np
import pytest
from real_clips import number_of, ramp, sound_alone, video
from typer.testing import CliRunner

from diffpo.captioners.base import Labeller
from diffpo.commands.app import app
from diffpo.curate.inspect import guess_source
from diffpo.curate.segments import label_by_hand, label_segments
from diffpo.data.splits import load_table
from diffpo.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Brighter(Labeller):
    """Prefers the brighter segment; says `odd` about the first `odd` segments, and stops after some."""

    name = "brighter"
    odd: int = 0
    stop: int = 10**9

    @property
    def provenance(self):
        return {"labeller": self.name, "odd": self.odd}

    def ask(self, segments):
        if len(ASKED) >= self.stop:
            raise UserError("stop")
        answers = []
        for segment in segments:
            ASKED.append([[number_of(frame) for frame in clip] for clip in (segment.first, segment.second)])
            means = [np.mean([np.asarray(frame) for frame in clip]) for clip in (segment.first, segment.second)]
            nearer = "tie" if abs(means[0] - means[1]) < 4 else "first" if means[0] > means[1] else "second"
            answers.append(["purple", "?"] if len(ASKED) <= self.odd else [nearer, segment.prompt])
        return answers

    def verdict(self, answers):
        return answers[0] if answers[0] in ("first", "second", "tie") else None

    def cost(self, segments, frames):
        return f"{segments} looks at {frames} frames"


ASKED: list = []
LEVELS = {"better": (9, 2, 5), "worse": (2, 2, 9), "even": (5, 5, 5)}
"""Brightness of the three seconds of clips."""


def clip(levels, fps=16, seconds=1):
    """Frames whose number in a `ramp` says their brightness."""
    frames = ramp(10)
    return video([frames[level] for level in levels for _ in range(fps * seconds)], fps=float(fps))


@pytest.fixture
def source(tmp_path):
    ASKED.clear()
    folder = tmp_path / "table"
    folder.mkdir()
    for name, levels in LEVELS.items():
        (folder / f"{name}.mp4").write_bytes(clip(levels))
    pairs = [("better", "even"), ("even", "better"), ("worse", "better"), ("even", "worse")]
    rows = [{"prompt": f"a bird {i}", "chosen": f"{a}.mp4", "rejected": f"{b}.mp4"} for i, (a, b) in enumerate(pairs)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row | {"preference": 0.5}) + "\n" for row in rows))
    return guess_source(str(folder / "pairs.jsonl"))


FOUND = [
    ["first", "second", "tie"],
    ["second", "first", "tie"],
    ["second", "tie", "first"],
    ["first", "first", "second"],
]


def read(folder):
    """Rows that training reads: names, labels, preference."""
    table = load_table(replace(guess_source(str(folder)), ties="keep"), str(folder), "train")
    names = [[os.path.basename(cell)[:-4] for cell in table.column(side)] for side in ("chosen", "rejected")]
    return list(zip(*names, table.column("segments"), table.column("preference"), strict=True))


def answers(folder):
    return [json.loads(line) for line in (folder / "train.answers.jsonl").read_text().splitlines()]


def test_segments_become_labels_and_the_majority_the_order(source, tmp_path, capsys):
    done = label_segments(source, Brighter(), tmp_path / "out")
    assert read(tmp_path / "out") == [
        ("better", "even", [1, -1, 0], 0.5),
        ("even", "better", [-1, 1, 0], 0.5),
        ("worse", "better", [-1, 0, 1], 0.5),
        ("even", "worse", [1, 1, -1], 1.0),
    ]
    assert [[part["label"] for part in row["segments"]] for row in answers(tmp_path / "out")] == FOUND
    first = answers(tmp_path / "out")[0]["segments"]
    assert first[1] == {
        "start": 1.0,
        "end": 2.0,
        "label": "second",
        "found": "second",
        "answers": ["second", "a bird 0"],
    }
    assert ASKED[1] == [[2] * 8, [5] * 8]  # the second second of both, 8 frames of 16
    assert (done.pairs, dict(done.counts), done.left_out) == (4, {"first": 5, "second": 4, "tie": 3}, 0)
    said = capsys.readouterr().err
    assert "12 segments of 4 pairs are asked about, the other 0 pairs are known: 12 looks at 192 frames" in said


def test_as_many_frames_are_looked_at_as_the_labeller_asks_for(source, tmp_path):
    label_segments(source, Brighter(fps=2.0), tmp_path / "out")
    assert ASKED[1] == [[2] * 2, [5] * 2] and {len(clip) for two in ASKED for clip in two} == {2}


def test_the_clip_that_wins_more_segments_becomes_the_chosen_one(source, tmp_path):
    row = {"chosen": "even.mp4", "rejected": "worse.mp4", "segments": ["second", "tie", "second"]}
    (tmp_path / "hand.jsonl").write_text(json.dumps(row) + "\n")
    done = label_by_hand(source, tmp_path / "hand.jsonl", tmp_path / "out")
    assert read(tmp_path / "out") == [("worse", "even", [1, 0, 1], 1.0)] and done.left_out == 3


def test_nothing_is_asked_twice_and_a_killed_call_continues(source, tmp_path):
    with pytest.raises(UserError, match="stop"):
        label_segments(source, Brighter(stop=6), tmp_path / "out")
    assert len(ASKED) == 6
    label_segments(source, Brighter(), tmp_path / "out")
    assert len(ASKED) == 12
    again = label_segments(source, Brighter(), tmp_path / "out")
    other = label_segments(source, Brighter(), tmp_path / "other")
    assert len(ASKED) == 12 and again == replace(other, files=again.files)


def test_what_a_person_corrects_wins(source, tmp_path):
    out, file = tmp_path / "out", tmp_path / "out" / "train.answers.jsonl"
    label_segments(source, Brighter(), out)
    lines = answers(out)
    lines[3]["segments"][0]["label"] = lines[3]["segments"][1]["label"] = "second"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = label_segments(source, Brighter(), out)
    assert read(out)[3] == ("worse", "even", [1, 1, 1], 1.0) and done.corrected == 2 and len(ASKED) == 12
    assert answers(out) == lines  # with what the labeller said beside it
    assert label_segments(source, Brighter(), out).corrected == 2
    other = label_segments(source, Brighter(odd=1), out, fresh=True)  # another labeller: what a person said stays
    assert other.corrected == 2 and read(out)[3] == ("worse", "even", [1, 1, 1], 1.0)
    by_hand = label_by_hand(source, file, tmp_path / "hand")  # the file itself is a file of labels
    assert read(tmp_path / "hand") == read(out) and by_hand.pairs == 4


def test_labels_in_a_csv_by_hand(source, tmp_path):
    (tmp_path / "hand.csv").write_text(
        'chosen,rejected,segments\nbetter.mp4,even.mp4,1 -1 0\neven.mp4,better.mp4,"first, tie, tie"\n'
    )
    done = label_by_hand(source, tmp_path / "hand.csv", tmp_path / "out")
    assert [row[2] for row in read(tmp_path / "out")] == [[1, -1, 0], [1, 0, 0]] and done.left_out == 2


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("better.mp4,even.mp4,1 0", "line 2 has 2 labels, but its clips last 3 seconds, which makes 3 segments"),
        ("better.mp4,even.mp4,1 0 2", "`segments` is '1 0 2'; it is a list of first, second and tie"),
        ("better.mp4,even.mp4,", "`segments` is ''"),
        ("other.mp4,even.mp4,1 0 0", r"1 of 1 labelled pairs of .*not in the table \(.*line 2\).*those of other clips"),
        (",even.mp4,1 0 0", "line 2 does not say which pair it labels"),
        ("better.mp4,even.mp4,1 0 0\nbetter.mp4,even.mp4,1 0 0", "line 3 labels the pair of .*line 2 a second time"),
    ],
)
def test_wrong_labels_are_named(source, tmp_path, line, told):
    (tmp_path / "hand.csv").write_text(f"chosen,rejected,segments\n{line}\n")
    with pytest.raises(UserError, match=told):
        label_by_hand(source, tmp_path / "hand.csv", tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.parquet"))


def test_corrections_of_other_clips_are_refused(source, tmp_path):
    label_segments(source, Brighter(), tmp_path / "out")
    lines = answers(tmp_path / "out")
    lines[0]["segments"][0]["label"], lines[0]["pair"] = "tie", "0" * 32
    (tmp_path / "out" / "train.answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=r"1 of 1 labelled pairs of .*not in the table"):
        label_segments(source, Brighter(), tmp_path / "out")


def test_a_labeller_that_answers_nonsense_is_stopped(source, tmp_path):
    with pytest.raises(UserError, match=r"brighter answered 6 of 6 segments with .*It last said 'purple' / '\?'"):
        label_segments(source, Brighter(odd=99), tmp_path / "out")
    assert len(ASKED) == 6 and not list((tmp_path / "out").glob("train*"))
    ASKED.clear()
    with pytest.raises(UserError, match=r"answered 2 of 12 segments"):  # bad luck explains one in ten
        label_segments(source, Brighter(odd=2), tmp_path / "out")
    ASKED.clear()
    label_segments(source, Brighter(odd=1), tmp_path / "out")
    assert answers(tmp_path / "out")[0]["segments"][0]["label"] == "tie"


def test_clips_that_last_unequally_long(source, tmp_path):
    folder = tmp_path / "table"
    (folder / "better.mp4").write_bytes(clip((9, 2)))
    with pytest.raises(UserError, match=r"3 of 4 pairs .*row 0: its clips last 2 and 3 seconds.*--unequal trim"):
        label_segments(source, Brighter(), tmp_path / "out")
    done = label_segments(replace(source, unequal="drop"), Brighter(), tmp_path / "out")
    assert (done.pairs, done.left_out) == (1, 3)
    ASKED.clear()
    label_segments(replace(source, unequal="trim"), Brighter(), tmp_path / "trimmed")
    assert [len(row[2]) for row in read(tmp_path / "trimmed")] == [2, 2, 2, 3]
    assert [side for two in ASKED for side in two if 9 in side] == [[9] * 8] * 3  # no third second in the last segment


def test_a_broken_clip_leaves_its_row_out(source, tmp_path, caplog):
    (tmp_path / "table" / "worse.mp4").write_bytes(sound_alone())
    done = label_segments(source, Brighter(), tmp_path / "out")
    assert (done.pairs, done.left_out) == (2, 2)
    assert "row 2 is left out: chosen image" in caplog.text and "it has no pictures, only sound" in caplog.text


@pytest.mark.parametrize(
    ("fps", "count", "segments"), [(24, 121, 5), (16, 81, 5), (8, 49, 6), (60, 62, 2), (30, 10, 1)]
)
def test_a_last_frame_alone_makes_no_segment(tmp_path, fps, count, segments):
    ASKED.clear()
    frames = (ramp(10) * 13)[:count]
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_bytes(video(frames, fps=float(fps)))
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "x", "chosen": "a.mp4", "rejected": "b.mp4"}))
    label_segments(guess_source(str(tmp_path / "pairs.jsonl")), Brighter(), tmp_path / "out")
    assert [row[2] for row in read(tmp_path / "out")] == [[0] * segments] and all(all(two) for two in ASKED)


def test_the_command_labels_by_a_tiny_vision_language_model(source, tmp_path):
    import torch
    from tiny_language import MODELS

    with torch.random.fork_rng():
        torch.manual_seed(0)
        MODELS["qwen2_vl"](tmp_path / "vlm")
    line = ["data", "segments", source.path, "--out", str(tmp_path / "out"), "--seconds", "3"]
    spec = f"chat,path={tmp_path / 'vlm'},decoding=words,edge=16,fps=1,device=cpu"
    result = CliRunner().invoke(app, [*line, "--labeller", spec], catch_exceptions=False)
    assert result.exit_code == 0 and "data.segment_seconds=3" in result.output
    assert "8 questions with 48 images, up to roughly" in result.stderr
    assert [len(row[2]) for row in read(tmp_path / "out")] == [1] * 4
    for wrong, told in (
        ([], "say who labels the segments"),
        (["--labeller", spec, "--scorer", "clip"], "say who labels the segments"),
        (["--labeller", spec, "--margin", "1"], "--margin goes with --scorer"),
        (["--labeller", f"{spec},fpss=1"], "unknown key"),
        (["--labeller", spec.replace("fps=1", "fps=0.2")], "leave segments of 3 seconds without a frame"),
    ):
        with pytest.raises(UserError, match=told):
            CliRunner().invoke(app, [*line, *wrong], catch_exceptions=False)
