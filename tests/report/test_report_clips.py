"""Clips in a report: what is embedded plays, has the pixels of the file, and no more frames than a page can hold."""

import base64
import io
import os
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageSequence

from diffpo.compare.compare import Judging, compare
from diffpo.compare.stats import Resampling
from diffpo.errors import UserError
from diffpo.media.folder import Media, write_manifest
from diffpo.media.frames import Clip, encode
from diffpo.report.examples import LARGEST_EDGE, MOST_FRAMES, data_uri
from diffpo.report.page import write_report
from diffpo.scorers.scores import ScoreRow, ScoreTable, write_scores

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


def test_small_clips_are_exact_and_play():
    uri = data_uri(clip(4, fps=5.0))
    with opened(uri) as image:
        assert image.n_frames == 4 and image.format == "PNG"
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
        assert image.info["duration"] == 200 and image.info["loop"] == 0
    assert all(np.array_equal(found, frame) for found, frame in zip(frames, clip(4).frames, strict=True))


def test_large_clips_are_reduced_and_long_ones_keep_their_time():
    with opened(data_uri(clip(100, edge=130, fps=20.0))) as image:
        assert (image.format, image.n_frames) == ("WEBP", MOST_FRAMES)
        durations = []
        for i in range(image.n_frames):
            image.seek(i)
            image.load()
            durations.append(image.info["duration"])
        assert sum(durations) == pytest.approx(5000, abs=50)
    with opened(data_uri(clip(2, edge=600))) as image:
        assert image.size == (LARGEST_EDGE, LARGEST_EDGE) and image.n_frames == 2


def test_a_report_of_clips(folders, tmp_path):
    html = write_report(tmp_path / "r.html", compare(folders, judging=QUICK), folders).read_text()
    shown = re.findall(r'<img src="(data:[^"]+)"', html)
    assert len(shown) == 2 * (3 + 3), "three at random, three wins"
    assert {opened(uri).n_frames for uri in shown} == {4}


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
