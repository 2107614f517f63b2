"""Clips in a report: what is embedded plays, has the pixels of the file, and no more frames than a page can hold."""

import base64
import io
import os
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from diffpo.compare.compare import Judging, compare
from diffpo.compare.stats import Resampling
from diffpo.errors import UserError
from diffpo.media.folder import Media, write_manifest
from diffpo.media.frames import Clip, decode_clip, encode
from diffpo.report.embed import LARGEST_EDGE, MOST_FRAMES, data_uri
from diffpo.report.page import write_report
from diffpo.scorers.frame_change import FrameChange
from diffpo.scorers.scores import ScoreRow, ScoreTable, read_scores, score_folder, write_scores

QUICK = Judging(resampling=Resampling(resamples=50))


def clip(frames, edge=16, fps=None, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, edge, edge, 3), dtype=np.uint8)
    return Clip(tuple(map(Image.fromarray, pixels)), fps)


def opened(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))


@pytest.fixture
def folders(tmp_path):
    """Two models, three prompts, clips of four frames; every score is known."""
    made = []
    for k, label in enumerate(("one", "two")):
        folder = tmp_path / label
        folder.mkdir()
        media = [
            Media(file=f"{i}.png", prompt=f"p{i}", prompt_id=i, seed=7, model=label, frames=4, fps=5.0)
            for i in range(3)
        ]
        for i, item in enumerate(media):
            (folder / item.file).write_bytes(encode(clip(4, fps=5.0, seed=10 * k + i)))
        write_manifest(folder, media)
        write_scores(
            folder / "scores.parquet", ScoreTable([ScoreRow.of(m, "x", float(k + i)) for i, m in enumerate(media)])
        )
        made.append(folder)
    return made


def film(uri):
    """The clip in a data URI."""
    return decode_clip(base64.b64decode(uri.partition("data:video/mp4;base64,")[2]))


def test_small_clips_are_enlarged_by_a_whole_factor():
    shown = film(data_uri(clip(4, fps=5.0)))
    assert (len(shown.frames), shown.fps, shown.first.size) == (4, 5, (256, 256))
    for found, frame in zip(shown.frames, clip(4).frames, strict=True):
        centres = np.asarray(found, float)[8::16, 8::16]
        assert np.abs(centres - np.asarray(frame)).mean() < 6


def test_large_clips_are_reduced_and_long_ones_keep_their_time():
    shown = film(data_uri(Clip(clip(5, edge=130).frames * 50, 25.0)))
    assert (len(shown.frames), shown.fps) == (MOST_FRAMES, pytest.approx(24))
    assert film(data_uri(clip(2, edge=601))).first.size == (LARGEST_EDGE, LARGEST_EDGE)
    assert len(data_uri(clip(48, edge=448, fps=8.0))) < 6 * 190_000 * 4 / 3 * 1.5, "noise for six seconds"


def test_a_report_of_clips(folders, tmp_path):
    html = write_report(tmp_path / "r.html", compare(folders, judging=QUICK), folders).read_text()
    shown = re.findall(r'<video src="(data:[^"]+)"', html)
    assert len(shown) == 2 * (3 + 3), "three at random, three wins"
    assert {len(film(uri).frames) for uri in shown} == {4}
    assert html.count('class="player"') == 6 and html.count("How much these clips move was not scored") == 1
    assert "A clip is compared with the other model's clip of the same prompt" in html and ">Clips of " not in html


def test_motion_stands_beside_quality(folders, tmp_path):
    for folder in folders:
        score_folder(folder, [FrameChange()])
    found = compare(folders, judging=QUICK)
    assert [result.scorer for result in found.comparisons[0].results] == ["x", "frame-change"]
    html = write_report(tmp_path / "r.html", found, folders).read_text()
    assert "motion (frame-change) of two, against one" in html and "was not scored" not in html
    assert html.count('<span class="motion">') == 12
    for asked in (None, ["x"]):
        notes = " ".join(compare(folders, scorers=asked, judging=QUICK).comparisons[0].notes)
        assert "tends to freeze motion. By frame-change, clips of two move" in notes, "asked for or not"


def test_images_have_no_note_on_motion(folders):
    for folder in folders:
        table = read_scores(folder)
        write_scores(folder / "scores.parquet", ScoreTable([replace(row, frames=1) for row in table.rows]))
    assert "motion" not in " ".join(compare(folders, judging=QUICK).comparisons[0].notes)


def test_the_change_from_frame_to_frame_is_counted_in_per_cent():
    levels = [Image.new("RGB", (4, 4), (level,) * 3) for level in (0, 51, 51, 0)]
    clips = [Clip(tuple(frames)) for frames in (levels, levels[:1], levels[1:3])]
    assert FrameChange().judge(clips, ["x"] * 3).tolist() == pytest.approx([40 / 3, 0, 0])
    assert FrameChange().provenance["measures"] == "motion"


def test_a_picture_of_several_frames_is_shown_as_it_was_judged(folders, tmp_path):
    """The manifest says one frame: the first one was judged, the first one is shown."""
    for folder in folders:
        table = ScoreTable(
            [
                ScoreRow(
                    file=f"{i}.png",
                    prompt=f"p{i}",
                    prompt_id=i,
                    seed=7,
                    model=folder.name,
                    scorer="x",
                    score=i + len(folder.name),
                )
                for i in range(3)
            ]
        )
        write_scores(folder / "scores.parquet", replace(table))
    html = write_report(tmp_path / "r.html", compare(folders, judging=QUICK), folders).read_text()
    shown = [opened(uri) for uri in re.findall(r'<img src="(data:[^"]+)"', html)]
    assert shown and {getattr(image, "n_frames", 1) for image in shown} == {1}


@pytest.mark.parametrize("by_table", [False, True])
def test_nothing_from_outside_a_media_folder_is_embedded(folders, tmp_path, by_table):
    """A link out of the folder, given as a folder or by its table."""
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8), "red").save(secret)
    (folders[1] / "2.png").unlink()
    os.symlink(secret, folders[1] / "2.png")
    sources = [folder / "scores.parquet" for folder in folders] if by_table else folders
    with pytest.raises(UserError, match=r"'2\.png' is not inside the folder"):
        write_report(tmp_path / "r.html", compare(sources, judging=QUICK), sources)
