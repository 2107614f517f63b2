"""Real video files through every command, of all kinds and broken ones: labels, a tiny Wan that learns, judges."""

import json
import math
import re
import sys

import pytest
import torch
import yaml
from real_clips import ramp, sound_alone, video
from tiny import save_pipeline
from tiny_clips import write_pickscore
from tiny_language import MODELS

from diffpo.__main__ import main

PROMPTS = ["a ramp that grows", "a ramp on its side", "a slow ramp"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny Wan, a tiny PickScore, a tiny Qwen2-VL, and a table of five pairs, two of which are broken."""
    folder = tmp_path_factory.mktemp("clips")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFPO_CACHE", str(folder / "cache"))
        patch.setenv("COLUMNS", "400")
        save_pipeline("wan", folder / "wan")
        write_pickscore(folder / "pickscore")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            MODELS["qwen2_vl"](folder / "qwen2-vl")
        whole = video(ramp(18, 33, 25), 16, pixels="yuv444p")
        slow = [0, *(0.05 * i + (0.2 if i > 5 else 0) for i in range(1, 12))]
        files = {
            "odd.mp4": whole,
            "sound.mp4": video(ramp(18), 16, sound=True),
            "turned.mp4": video(ramp(18, 24, 40), 16, turned=90),
            "varies.mkv": video(ramp(12), 16, times=slow, kind="matroska"),
            "small.webm": video(ramp(12), 16, kind="webm", codec="libvpx-vp9"),
            "cut.mp4": whole[:-300],
            "mute.mp4": sound_alone(),
        }
        for name, data in files.items():
            (folder / name).write_bytes(data)
        pairs = [
            *(("odd.mp4", "sound.mp4"), ("turned.mp4", "odd.mp4"), ("varies.mkv", "small.webm")),
            *(("cut.mp4", "odd.mp4"), ("odd.mp4", "mute.mp4")),
        ]
        rows = [
            {"prompt": PROMPTS[i % 3], "chosen": chosen, "rejected": rejected, "segments": [1]}
            for i, (chosen, rejected) in enumerate(pairs)
        ]
        (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
        tree = {
            "model": {"name": "lora", "path": str(folder / "wan")},
            "method": {"name": "densedpo"},
            "data": {"name": "pairs", "path": str(folder / "pairs.jsonl"), "resolution": 16, "frames": 9},
            "train": {"steps": 2, "batch": 1, "accumulate": 2, "output": str(folder / "run")},
            "sample": {"prompts": PROMPTS[:1], "steps": 1, "frames": 5, "size": [16, 16]},
        }
        (folder / "train.yaml").write_text(yaml.safe_dump(tree))
        yield folder


@pytest.fixture
def run(capsys, caplog, monkeypatch):
    """Run one command in this process; returns its exit code and what it said, warnings included."""

    def command(line):
        caplog.clear()
        monkeypatch.setattr(sys, "argv", ["diffpo", *map(str, line)])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out + said.err + caplog.text

    return command


def test_clips_go_the_whole_way(place, run):
    """Inspected, labelled by a vision-language model and a person, encoded, trained on; generated, scored, shown."""
    code, said = run(["data", "inspect", place / "pairs.jsonl"])
    assert code == 0 and "18 frames at 16 per second" in said
    assert "chosen image" in said and "cut.mp4" in said and "it has no pictures, only sound" in said
    label_by_a_model_and_a_person(place, run)
    cached = []
    for steps in (1, 2):  # the second update goes on from the first one, and encodes nothing
        code, said = run(["train", place / "train.yaml", f"data.path={place / 'labelled'}", f"train.steps={steps}"])
        assert code == 0 and "pairs   3 used" in said, said
        cached.append(sorted((place / "cache" / "encodings").rglob("*.arrow")))
    assert cached[0] and cached[0] == cached[1]
    losses = [json.loads(line) for line in (place / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in losses if "loss" in line] == [1, 2] and losses[0]["loss"] == pytest.approx(
        math.log(2)
    )
    out = place / "media"
    usual = ["--prompts", place / "prompts.txt", "--steps", 1, "--size", "16x16", "--batch", 3]
    (place / "prompts.txt").write_text("\n".join(PROMPTS))
    for label, more in (("base", []), ("tuned", ["--tuned", place / "run"])):
        code, said = run(["generate", place / "wan", *usual, "--frames", 5, "--out", out / label, *more])
        assert code == 0, said
        assert sorted(path.suffix for path in (out / label).glob("0*")) == [".mp4"] * 3
    scorers = ["-s", f"pickscore,path={place / 'pickscore'}", "-s", "frame-change"]
    code, said = run(["score", out / "base", out / "tuned", *scorers])
    assert code == 0, said
    code, said = run(["report", out / "base", out / "tuned", "--out", place / "report.html"])
    assert code == 0, said
    html = (place / "report.html").read_text()
    assert len(re.findall('<video src="data:video/mp4', html)) >= 6 and "motion (frame-change)" in html
    code, said = run(["data", "show", place / "pairs.jsonl", "--out", place / "pairs.html"])
    assert code == 0 and "left out: row 3: chosen image" in said


def label_by_a_model_and_a_person(place, run):
    """The random model says what it says; a person changes one label of each pair, and that counts."""
    out, model = place / "labelled", f"chat,path={place / 'qwen2-vl'},decoding=words,edge=16,device=cpu"
    line = ["data", "segments", place / "pairs.jsonl", "--labeller", model, "--unequal", "trim", "--out", out]
    code, said = run(line)
    assert code == 0 and "2 pairs without labels are left out" in said, said
    assert "row 3 is left out: chosen image" in said and "row 4 is left out: rejected image" in said
    answers = [json.loads(row) for row in (out / "train.answers.jsonl").read_text().splitlines()]
    told = {word for row in answers for part in row["segments"] for word in part["answers"]}
    assert len(answers) == 3 and told <= {"first", "second", "tie"}
    for row in answers:
        part = row["segments"][0]
        part["label"] = "second" if part["found"] == "first" else "first"
    (out / "train.answers.jsonl").write_text("\n".join(map(json.dumps, answers)))
    code, said = run(line)
    assert code == 0 and "3 labels were corrected by hand" in said and "asked about" not in said


def test_what_is_wrong_with_a_clip_is_said_before_anything_is_encoded(place, run):
    for change, reason in (
        ("data.frames=8", r"data\.frames=8 does not fit this model: it takes k \* 4 \+ 1 frames\. Use 5 or 9\."),
        ("data.frames=33", r"None of the pairs .* it has 18 frames at 16 per second where data\.frames=33 are wanted"),
        ("data.frames=null", r"cannot be compared frame by frame: row 2: its clips differ in length"),
    ):
        code, said = run(["train", place / "train.yaml", change, f"train.output={place / 'refused'}"])
        assert code == 2 and re.search(reason, " ".join(said.split())), said


def test_wrong_labels_and_lengths_exit_with_two(place, run):
    """What stands in the place of labels, or is asked of a sampler, and is none."""
    (place / "many.jsonl").write_text(
        json.dumps({"chosen": "odd.mp4", "rejected": "sound.mp4", "segments": ["tie"] * 5})
    )
    (place / "other.jsonl").write_text(json.dumps({"chosen": "x.mp4", "rejected": "y.mp4", "segments": ["tie"]}))
    (place / "prompts.txt").write_text("a")
    chat = f"chat,path={place / 'qwen2-vl'},edge=16,device=cpu,max_new_tokens=4"
    segments = ["data", "segments", place / "pairs.jsonl", "--unequal", "trim", "--out", place / "no"]
    for line, reason in (
        (
            [*segments, "--labels", place / "many.jsonl"],
            r"has 5 labels, but its clips last 1.12 seconds, .* 2 segments",
        ),
        ([*segments, "--labels", place / "other.jsonl"], "1 of 1 labelled pairs .* are not in the table"),
        ([*segments, "--labeller", chat], "answered 5 of 5 segments with something else than first, second or tie"),
        (
            ["generate", place / "wan", "--prompts", place / "prompts.txt", "--frames", 6, "--out", place / "no"],
            r"takes clips of k \* 4 \+ 1 frames; it was given 6 frames. The nearest lengths are 5 and 9",
        ),
    ):
        code, said = run(line)
        assert code == 2 and re.search(reason, " ".join(said.split())), said
    assert not (place / "no").exists()
