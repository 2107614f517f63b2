"""What is missing or wrong is said before the work begins, and what has changed is not taken for what it was."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from data_fixtures import jsonl, own_caches, picture, records  # noqa: F401
from real_clips import ramp, video
from typer.testing import CliRunner

from diffpo.captioners.labellers import ScorerLabeller
from diffpo.commands.app import app
from diffpo.commands.personal import check_out
from diffpo.config.options import make_scorer, parse_seeds
from diffpo.data import Pairs, load_splits
from diffpo.errors import UserError
from diffpo.generation import video_pairs
from diffpo.generation.video_pairs import VideoPairOptions, _hash
from diffpo.media.frames import BrokenImage, decode_clip
from diffpo.training.samples import prompts_of


def test_the_prompts_of_samples_are_looked_for_at_once():
    assert prompts_of(("a",)) == ("a",)
    with pytest.raises(UserError, match="there is no prompt file"):
        prompts_of("nothere.txt")


@pytest.mark.parametrize("text", ["0-99999999999", "0-99999999999999999999999", "0-10000"])
def test_a_range_of_seeds_takes_no_memory(text):
    with pytest.raises(UserError, match="at most 10,000 are taken"):
        parse_seeds(text)
    assert len(parse_seeds("0-9999")) == 10_000


def test_an_array_that_says_that_it_is_huge_is_a_broken_clip():
    head = b"{'descr': '|u1', 'fortran_order': False, 'shape': (100000, 20000, 20000, 3), }".ljust(117) + b"\n"
    with pytest.raises(BrokenImage, match="larger than the memory"):
        decode_clip(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head)
    file = io.BytesIO()
    np.save(file, np.zeros((2, 4, 4, 3), np.uint8))
    assert len(decode_clip(file.getvalue()).frames) == 2


def test_booleans_are_no_labels_of_segments(records, jsonl):  # noqa: F811
    with pytest.raises(UserError, match="`segments` is a list of -1, 0 and 1"):
        load_splits(Pairs(path=jsonl(records(3, segments=lambda i: [True, False]))))


def test_a_score_that_is_no_number_is_no_verdict():
    """Comparisons with NaN are false, which made the second clip the better one."""
    labeller = ScorerLabeller(scorer=make_scorer("frame-change"))
    nan, infinite = float("nan"), float("inf")
    assert [labeller.verdict(each) for each in ([nan, 0.0], [0.0, nan], [infinite, 0.0])] == [None] * 3
    assert labeller.verdict([1.0, 0.0]) == "first"


def test_a_real_clip_is_known_by_its_bytes(tmp_path):
    """Another clip of the same name and size is another one."""
    clip = tmp_path / "a.mp4"
    clip.write_bytes(video(ramp(5), 16))
    before = _hash(clip)
    data = bytearray(clip.read_bytes())
    data[-1] ^= 1
    clip.write_bytes(data)
    assert _hash(clip) != before
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "1.png").write_bytes(b"a")
    before = _hash(tmp_path / "frames")
    (tmp_path / "frames" / "1.png").write_bytes(b"b")
    assert _hash(tmp_path / "frames") != before


def test_what_pairs_of_clips_are_made_of_is_a_setting(pipelines, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(video_pairs, "fill_folder", lambda out, command, settings, *_, **__: seen.append(settings))
    how = {"model": str(pipelines("wan")), "frames": 5, "size": (16, 16), "device": "cpu"}
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("a ramp")
    for clip, eta in ((ramp(9), 0.7), (ramp(9)[::-1], 0.7), (ramp(9)[::-1], 0.8)):
        (tmp_path / "real" / "a.mp4").write_bytes(video(clip, 16))
        video_pairs.make_video_pairs(VideoPairOptions(**how, eta=(eta, eta)), tmp_path / "real", tmp_path / "out")
    (first, turned, noisier) = ({key: s[key] for key in ("clips", "eta")} for s in seen)
    assert first["clips"] != turned["clips"] == noisier["clips"] and turned["eta"] != noisier["eta"]


def test_a_report_of_others_stays(tmp_path):
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(UserError, match=r"holds a report.html that is not of `diffpo personal`"):
        check_out(tmp_path)
    (tmp_path / "personal.json").write_text("{}")
    check_out(tmp_path)


def test_settings_that_would_be_passed_over_are_refused(tmp_path):
    with pytest.raises(UserError, match="pairs of clips are made for nobody"):
        VideoPairOptions(model="x", users="users", blend={"ann": 1.0})
    done = CliRunner().invoke(app, ["generate", "x", "--prompts", "y", "--out", str(tmp_path), "--strength", "0.5"])
    assert isinstance(done.exception, UserError) and "give --user or --blend" in str(done.exception)
