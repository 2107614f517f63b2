"""Grids: what is on them, and that no text is cut."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from diffpo.errors import UserError
from diffpo.media.folder import Media, manifest_line, read_media, write_manifest
from diffpo.media.frames import Clip, encode
from diffpo.media.sheet import Cell, Row, _font, draw_grid, fit, wrap
from diffpo.report.grid import write_grid


def test_the_sidecar_says_what_is_shown(folders, tmp_path):
    out = write_grid(tmp_path / "new" / "grid.png", folders, prompts=3, seeds=2, scorer="shapes-utility", cell=64)
    record = json.loads((tmp_path / "new" / "grid.json").read_text())
    assert record["models"] == ["base", "tuned"] and record["chosen"] == "the first prompts"
    assert [row["prompt"] for row in record["rows"]] == [m.prompt for m in read_media(folders[0])[0:6:2]]
    shown = [(image["model"], image["seed"]) for image in record["rows"][0]["images"]]
    assert shown == [("base", 0), ("base", 1), ("tuned", 0), ("tuned", 1)]
    assert all(image["score"] > 0 for row in record["rows"] for image in row["images"])
    assert Image.open(out).width > 5 * 64


def test_every_row_has_as_many_seeds(folders, tmp_path):
    """One folder lacks an image of the first prompt: that prompt cannot fill its columns and is left out."""
    copy = shutil.copytree(folders[1], tmp_path / "copy")
    write_manifest(copy, read_media(copy)[1:])
    write_grid(tmp_path / "grid.png", [folders[0], copy], seeds=2, cell=32)
    rows = json.loads((tmp_path / "grid.json").read_text())["rows"]
    assert len(rows) == 5 and all(len(row["images"]) == 4 for row in rows)
    write_manifest(copy, [replace(m, seed=m.seed + 10) for m in read_media(copy)])
    with pytest.raises(UserError, match="no prompt and seed in common"):
        write_grid(tmp_path / "grid.png", [folders[0], copy])


def test_random_prompts_are_stated_and_repeatable(folders, tmp_path):
    for name in ("a", "b"):
        write_grid(tmp_path / f"{name}.png", folders, prompts=3, shuffle=7, cell=32)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["chosen"].endswith("with seed 7")
    drawn = [row["prompt"] for row in record["rows"]]
    everything = list(dict.fromkeys(media.prompt for media in read_media(folders[0])))
    assert drawn != everything[:3] and set(drawn) <= set(everything)


def test_a_clip_is_a_strip_of_frames(tmp_path):
    """Seven frames: the first, the third, the fifth and the last one stand side by side, a pixel apart."""
    shades = [20, 50, 80, 110, 140, 170, 200]
    clip = Clip(tuple(Image.new("RGB", (16, 16), (shade, 0, 0)) for shade in shades))
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.png").write_bytes(encode(clip))
    item = Media(file="a.png", prompt="brighter", prompt_id=0, seed=0, model="m", frames=7, fps=8.0)
    (tmp_path / "clips" / "manifest.jsonl").write_text(manifest_line(item))
    write_grid(tmp_path / "grid.png", [tmp_path / "clips"], cell=64)
    pixels = np.asarray(Image.open(tmp_path / "grid.png")).astype(int)
    centres = [np.argwhere((pixels == (shade, 0, 0)).all(-1)).mean(0)[1] for shade in (20, 80, 140, 200)]
    np.testing.assert_allclose(np.diff(centres), 65, atol=1)
    edges = [np.argwhere((pixels == (shade, 0, 0)).all(-1))[:, 1] for shade in (20, 80)]
    assert (pixels[40, edges[0].max() + 1 : edges[1].min()] == 255).all() and edges[1].min() - edges[0].max() == 2
    assert not (pixels == (50, 0, 0)).all(-1).any()


def test_pixels_are_where_they_belong():
    """Three colours left to right and top to bottom, in cells of 64."""
    colors = [["red", "lime"], ["blue", "yellow"]]
    rows = [Row("x", tuple(Cell(Clip((Image.new("RGB", (16, 16), c),))) for c in line)) for line in colors]
    pixels = np.asarray(draw_grid(["a", "b"], rows, cell=64)).astype(int)
    centres = {}
    for color, rgb in {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}.items():
        found = np.argwhere((pixels == rgb).all(-1))
        assert len(found) == 62 * 62  # the outline takes one pixel on each side
        centres[color] = found.mean(0)
    assert centres["red"][0] == centres["lime"][0] < centres["blue"][0] == centres["yellow"][0]
    assert centres["red"][1] == centres["blue"][1] < centres["lime"][1] == centres["yellow"][1]


@pytest.mark.parametrize(
    "caption",
    [
        "bond",
        "portrait of an astronaut, highly detailed, " * 12,
        "x" * 300,
        "猫" * 80,
        "café — “quoted” 🐱",
        "",
        "a\n\tb",
    ],
)
def test_no_letter_leaves_its_column(caption):
    """Ink in the margins or between caption and picture would be a text that ran over."""
    picture = Image.new("RGB", (64, 64), "gray")
    image = draw_grid(["m" * 40], [Row(caption, (Cell(Clip((picture,)), caption[:60]),))], cell=128)
    ink = np.asarray(image.convert("L")) < 200  # darker than the lines
    margin = 2 * 8
    assert ink.any()
    for strip in (ink[:, :margin], ink[:, -margin:], ink[-4:], ink[:, margin + 128 : margin + 128 + 16]):
        assert not strip.any()


def test_lines_break_between_words_and_end_whole():
    font = _font(16, "")
    text = "a purple triangle stands left of a very large yellow circle"
    lines = wrap(text, 120, font)
    assert " ".join(lines) == text and all(font.getlength(line) <= 120 for line in lines)
    short = wrap(text, 120, font, limit=2)
    assert len(short) == 2 and short[-1].endswith(" ...") and text.startswith(" ".join(short)[:-4])
    assert "".join(wrap("y" * 90, 120, font)) == "y" * 90


def test_small_images_keep_even_pixels():
    """64 -> 256 is a whole factor: no colour appears that was not there. 640 -> 256 fits, ratio kept."""
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    assert np.array_equal(np.asarray(fit(small, 256))[::4, ::4], np.asarray(small))
    assert fit(Image.new("RGB", (640, 320)), 256).size == (256, 128)
    assert fit(Image.new("RGB", (100, 50)), 250).size == (250, 125)


def test_mistakes(folders, tmp_path):
    with pytest.raises(UserError, match="no scores of 'pickscore'"):
        write_grid(tmp_path / "a.png", folders, scorer="pickscore")
    with pytest.raises(UserError, match="at least one"):
        write_grid(tmp_path / "a.png", folders, prompts=0)
