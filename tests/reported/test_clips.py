"""Real video files through every command, of all kinds and broken ones: a tiny Wan learns from them."""

import json
import re
import sys

import pytest
import yaml
from real_clips import ramp, sound_alone, video
from tiny import save_pipeline
from tiny_clips import write_pickscore

from diffpo.__main__ import main

PROMPTS = ["a ramp that grows", "a ramp on its side", "a slow ramp"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny Wan, a tiny PickScore, and a table of five pairs, two of which are broken."""
    folder = tmp_path_factory.mktemp("clips")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFPO_CACHE", str(folder / "cache"))
        patch.setenv("COLUMNS", "400")
        save_pipeline("wan", folder / "wan")
        write_pickscore(folder / "pickscore")
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
def run(capsys, monkeypatch):
    """Run one command in this process; returns its exit code and what it said."""

    def command(line):
        monkeypatch.setattr(sys, "argv", ["diffpo", *map(str, line)])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out + said.err

    return command


def test_clips_go_the_whole_way(place, run):
    code, said = run(["data", "inspect", place / "pairs.jsonl"])
    assert code == 0 and "18 frames at 16 per second" in said
    assert "chosen image" in said and "cut.mp4" in said and "it has no pictures, only sound" in said
    code, said = run(["train", place / "train.yaml"])
    assert code == 0, said
    steps = [json.loads(line) for line in (place / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == [1, 2]
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


def test_what_is_wrong_with_a_clip_is_said_before_anything_is_encoded(place, run):
    for change, reason in (
        ("data.frames=8", r"data\.frames=8 does not fit this model: it takes k \* 4 \+ 1 frames\. Use 5 or 9\."),
        ("data.frames=33", r"None of the pairs .* it has 18 frames at 16 per second where data\.frames=33 are wanted"),
        ("data.frames=null", r"cannot be compared frame by frame: row 2: its clips differ in length"),
    ):
        code, said = run(["train", place / "train.yaml", change, f"train.output={place / 'refused'}"])
        assert code == 2 and re.search(reason, " ".join(said.split())), said
