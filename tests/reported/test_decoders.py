"""Training, scoring, grids and captions see the same pixels, whatever lies beside a picture; bombs end nothing."""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffpo.data.images import CENTRE, prepare
from diffpo.errors import UserError
from diffpo.media.folder import open_clip, read_media
from diffpo.media.frames import open_footage
from diffpo.scorers.base import ImageScorer
from diffpo.scorers.scores import score_folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What one test scores is not known to the next one."""
    monkeypatch.setenv("DIFFPO_CACHE", str(tmp_path / "cache"))


@dataclass(frozen=True, kw_only=True)
class Darkness(ImageScorer):
    """A scorer that keeps what it is shown."""

    name = "darkness"
    about = "How dark an image is."
    scale = "gray levels"
    seen: dict[str, bytes] = field(default_factory=dict)

    @property
    def _found(self) -> dict[str, Any]:
        return {}

    def score(self, images, prompts):
        self.seen.update({prompt: image.tobytes() for prompt, image in zip(prompts, images, strict=True)})
        return torch.tensor([-np.asarray(image, float).mean() for image in images])


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pictures() -> dict[str, bytes]:
    """One of each kind whose pixels depend on who decodes them."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 24, 4), dtype=np.uint8)
    rgba = Image.fromarray(noise, "RGBA")
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = rgba.convert("RGB").quantize(8)
    frames = [Image.new("RGB", (24, 20), color) for color in ("red", "blue")]
    return {
        "rgba.png": saved(rgba),
        "key.png": saved(rgba.convert("RGB"), transparency=tuple(noise[0, 0, :3].tolist())),
        "palette.png": saved(palette, transparency=3),
        "turned.jpg": saved(rgba.convert("RGB"), "JPEG", exif=exif),
        "deep.png": saved(Image.fromarray(noise.view(np.uint16)[..., 0])),
        "ink.jpg": saved(rgba.convert("CMYK"), "JPEG"),
        "moving.gif": saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100),
    }


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    rows = [json.dumps({"file_name": name, "text": name}) for name in files]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def test_training_scoring_and_grids_see_the_same_pixels(tmp_path):
    files, scorer = pictures(), Darkness()
    folder = write(tmp_path / "all", files)
    score_folder(folder, [scorer])
    for item in read_media(folder):
        with open_footage({"bytes": files[item.file], "path": None}) as footage:
            pixels = prepare(footage.frames([0]), 1, footage.size[::-1], CENTRE).pixels.tobytes()
        assert scorer.seen[item.file] == pixels == open_clip(folder, item).first.tobytes(), item.file


def test_a_score_does_not_depend_on_neighbours(tmp_path):
    files = pictures()
    together = score_folder(write(tmp_path / "all", files), [Darkness()])
    for number, (name, data) in enumerate(files.items()):
        alone = score_folder(write(tmp_path / str(number), {name: data}), [Darkness()])
        assert [row.score for row in alone.rows] == [row.score for row in together.rows if row.file == name]


def test_bombs_are_left_out_counted_and_named(tmp_path, capsys):
    """A million of pixels takes kilobytes in a file: one colour, or a size that is a lie."""
    bomb = saved(Image.new("1", (9_000, 9_000)))
    lie = bytearray(saved(Image.new("RGB", (8, 8), "red"), "BMP"))
    lie[18:26] = (30_000).to_bytes(4, "little") * 2
    files = {"good.png": saved(Image.new("RGB", (8, 8), "red")), "bomb.png": bomb, "lie.bmp": bytes(lie)}
    table = score_folder(write(tmp_path / "some", files), [Darkness()])
    assert [row.file for row in table.rows] == ["good.png"]
    said = capsys.readouterr().err
    assert "2 of 3 images are left out" in said
    assert "bomb.png is no readable image: too large: 9000x9000, at most 50 million pixels are read" in said
    assert "lie.bmp is no readable image: too large: more than 50 million pixels" in said


@pytest.mark.parametrize(
    ("ours", "advice"),
    [
        (False, "Put a whole image there, or leave it out"),
        (True, "deleted or missing, `diffpo generate` with the same"),
    ],
)
def test_only_who_made_an_image_can_make_it_again(tmp_path, ours, advice):
    folder = write(tmp_path / "some", {"a.png": b"no image"})
    if ours:
        (folder / "settings.json").write_text("{}")
    with pytest.raises(UserError, match=advice):
        open_clip(folder, read_media(folder)[0])
