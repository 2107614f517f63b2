"""The decoder: an image is a clip of one frame, what others made is bounded, hidden files are no data."""

import io
import logging
import os
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from diffpo.media import bounds
from diffpo.media import pictures as pictures_module
from diffpo.media.folder import Media, manifest_line, open_clip, read_file, read_media
from diffpo.media.frames import BrokenImage, Clip, decode, decode_clip, encode, find_pictures, name_others, read_bytes


def pictures(count: int = 3) -> tuple[Image.Image, ...]:
    noise = np.random.default_rng(0).integers(0, 256, (count, 8, 12, 3), dtype=np.uint8)
    return tuple(map(Image.fromarray, noise))


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def test_a_clip_is_kept_without_loss_and_equal_frames_stay():
    one, two, three = pictures()
    clip = Clip((one, one, two, two, two, three, one), 8.0)
    back = decode_clip(encode(clip))
    assert [frame.tobytes() for frame in back.frames] == [frame.tobytes() for frame in clip.frames]
    assert back.fps == 8.0
    assert decode(encode(clip)).tobytes() == one.tobytes()


def test_an_image_is_a_clip_of_one_frame():
    (one,) = pictures(1)
    assert encode(Clip((one,))) == saved(one, "PNG")
    clip = decode_clip(saved(one, "PNG"))
    assert (len(clip.frames), clip.fps) == (1, None)
    assert clip.first.tobytes() == one.tobytes()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "AVIF", "PNG"])
def test_animations_are_read_as_frames(kind):
    one, two, three = (Image.new("RGB", (32, 16), color) for color in ("red", "lime", "blue"))
    data = saved(one, kind, save_all=True, append_images=[two, three], duration=100)
    clip = decode_clip(data)
    assert len(clip.frames) == 3
    assert clip.fps == pytest.approx(10)
    for frame, wanted in zip(clip.frames, (one, two, three), strict=True):
        assert np.abs(np.asarray(frame, int) - np.asarray(wanted, int)).max() < 16
    assert decode(data).tobytes() == clip.first.tobytes()
    assert len(decode_clip(data, 2).frames) == 2
    with pytest.raises(BrokenImage, match="3 frames where 4"):
        decode_clip(data, 4)


def test_some_frames_are_spread_from_the_first_to_the_last():
    frames = pictures(9)
    assert Clip(frames).some(3) == (frames[0], frames[4], frames[8])
    assert Clip(frames).some(1) == frames[:1]
    assert Clip(frames[:2]).some(4) == frames[:2]


def test_pixels_do_not_depend_on_what_the_file_says_beside_them():
    """A colour that is transparent, a profile: both were carried along, and networks' processors looked at them."""
    image = Image.new("RGB", (2, 1), "red")
    image.putpixel((1, 0), (0, 255, 0))
    read = decode(saved(image, "PNG", transparency=(0, 255, 0)))
    assert [read.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]
    assert read.info == decode(saved(image, "PNG", dpi=(72, 72), icc_profile=b"p")).info == {}


def test_a_large_transparent_picture_is_laid_on_white_in_bands(monkeypatch):
    rgba = Image.fromarray(np.random.default_rng(0).integers(0, 256, (23, 9, 4), dtype=np.uint8), "RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    wanted = Image.alpha_composite(white, rgba).convert("RGB").tobytes()
    for band in (4, 23, 100):
        monkeypatch.setattr(pictures_module, "_BAND", band)
        assert decode(saved(rgba, "PNG")).tobytes() == wanted


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png_of_size(20_000, 20_000), "too large"),
        (png_of_size(8_000, 8_000), "too large: 8000x8000, at most 50 million pixels"),
        (png_of_size(3_000, 100), "3000x100 pixels is longer than 16:1"),
        (png_of_size(500, 500), "truncated|broken|OSError"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", "not an image in a format"),
        (b"P6 2 2 255 " + b"\0" * 12, "not an image in a format"),
        (b"", "not an image in a format"),
    ],
)
def test_what_claims_too_much_is_broken(data, reason):
    with pytest.raises(BrokenImage, match=reason):
        decode(data)


def test_a_clip_of_too_many_pixels_is_broken(monkeypatch):
    one, two, three = pictures()
    data = encode(Clip((one, two, three)))
    monkeypatch.setattr(bounds, "LARGEST_CLIP", 2 * 8 * 12)
    with pytest.raises(BrokenImage, match="more than 2 frames of 12x8"):
        decode_clip(data)
    assert decode(data).tobytes() == one.tobytes()


def test_pages_of_other_sizes_are_no_clip():
    pages = [Image.new("RGB", size, "red") for size in ((8, 8), (9, 9))]
    data = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert decode(data).size == (8, 8)
    with pytest.raises(BrokenImage, match="different sizes"):
        decode_clip(data)
    pages = [pages[0], Image.new("1", (9_000, 9_000))]
    data = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:], compression="tiff_deflate")
    with pytest.raises(BrokenImage, match="too large: 9000x9000"):
        decode_clip(data)


def test_large_pictures_are_decoded_one_at_a_time(monkeypatch):
    monkeypatch.setattr(bounds, "_LARGE", 8 * 12 - 1)
    to_rgb, inside, most = pictures_module.to_rgb, [], []

    def watched(image):
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.01)
        result = to_rgb(image)
        inside.pop()
        return result

    monkeypatch.setattr(pictures_module, "to_rgb", watched)
    data = saved(pictures(1)[0], "PNG")
    threads = [threading.Thread(target=decode, args=(data,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


def test_pipes_devices_and_folders_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        for read in (decode, read_bytes):
            with pytest.raises(BrokenImage, match="not a regular file"):
                read(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BrokenImage, match="directory"):
        decode(tmp_path / "empty")
    item = Media(file="pipe.png", prompt="x", prompt_id=0, seed=0, model="m")
    for read in (open_clip, read_file):
        with pytest.raises(BrokenImage) as said:
            read(tmp_path, item)
        assert str(said.value).count("pipe.png") == 1


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(bounds.LARGEST_FILE + 1)
    with pytest.raises(BrokenImage, match="too large: 256 MB"):
        read_bytes(tmp_path / "huge.png")


def test_hidden_files_are_no_data(tmp_path):
    for name in ("a.png", "b/c.JPG", "d.jfif", ".e.png", "._a.png", ".ipynb_checkpoints/a.png", "__MACOSX/b/c.png"):
        path = tmp_path / ".home" / name  # hidden places above the folder do not matter
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    home = tmp_path / ".home"
    assert [str(path.relative_to(home)) for path in find_pictures(home)] == ["a.png", "b/c.JPG", "d.jfif"]


def test_formats_that_are_not_read_are_named(tmp_path, caplog):
    for name in ("a.png", "b.heic", "c.AVI", "readme.md", ".d.heic"):
        (tmp_path / name).write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        name_others(tmp_path)
    assert caplog.messages == [f"{tmp_path}: the formats of 2 files are not read, they are left out: b.heic, c.AVI"]


def test_a_manifest_says_frames(tmp_path):
    frames = pictures()
    (tmp_path / "clip.png").write_bytes(encode(Clip(frames)))
    item = Media(file="clip.png", prompt="noise", prompt_id=0, seed=0, model="m", frames=3, fps=24.0)
    (tmp_path / "manifest.jsonl").write_text(manifest_line(item))
    assert read_media(tmp_path) == [item]
    clip = open_clip(tmp_path, item)
    assert [frame.tobytes() for frame in clip.frames] == [frame.tobytes() for frame in frames]
    assert clip.fps == 24


def test_a_line_of_an_image_says_no_frames():
    line = manifest_line(Media(file="a.png", prompt="x", prompt_id=0, seed=0, model="m"))
    assert line == '{"file": "a.png", "prompt": "x", "prompt_id": 0, "seed": 0, "model": "m"}\n'
