"""Video files: any rate becomes the one asked for, what is turned is turned, colours are right, damage is named."""

import gc
import io
import os

import av
import numpy as np
import pytest
import torch
from PIL import Image
from real_clips import number_of, ramp, sound_alone, video
from safetensors.torch import save

from diffpo.media import bounds, videos
from diffpo.media.footage import FrameRule, Timeline
from diffpo.media.frames import BrokenImage, Clip, decode, decode_clip, encode, look, open_footage

LOSSLESS = {"qp": "0"}


def numbers(clip):
    return [number_of(frame) for frame in clip.frames]


@pytest.mark.parametrize(
    ("kind", "codec", "pixels"),
    [
        ("mp4", "libx264", "yuv420p"),
        ("mov", "libx264", "yuv444p"),
        ("mp4", "libx264", "yuv420p10le"),
        ("matroska", "libx264", "yuvj420p"),
        ("webm", "libvpx-vp9", "yuv420p"),
        ("webm", "libvpx", "yuv420p"),
        ("matroska", "ffv1", "yuv444p"),
    ],
)
def test_containers_codecs_and_depths_give_the_same_frames(kind, codec, pixels):
    frames = ramp(5)
    clip = decode_clip(video(frames, 8, kind=kind, codec=codec, pixels=pixels, sound=kind == "mp4"))
    assert numbers(clip) == [0, 1, 2, 3, 4]
    assert clip.fps == pytest.approx(8, rel=0.01)
    for frame, wanted in zip(clip.frames, frames, strict=True):
        assert np.abs(np.asarray(frame, int) - wanted).max() < 12


def test_b_frames_come_in_the_order_in_which_they_are_shown():
    data = video(ramp(9), options={"bf": "3", "b-adapt": "0"})
    assert numbers(decode_clip(data)) == list(range(9))
    with open_footage(data) as footage:
        assert [number_of(frame) for frame in footage.frames([1, 4, 4, 7])] == [1, 4, 4, 7]


@pytest.mark.parametrize("kind", ["mp4", "matroska"])
def test_a_variable_rate_becomes_even(kind):
    """Frames 0 to 5 at 0, 0.1, 0.2, 0.6, 1.0 and 1.1 seconds: slow in the middle, nearest frame at 5 per second."""
    data = video(ramp(6), 10, times=[0, 0.1, 0.2, 0.6, 1.0, 1.1], kind=kind)
    assert numbers(decode_clip(data)) == [0, 1, 2, 3, 4, 5]
    even = decode_clip(data, fps=5)
    assert numbers(even)[:6] == [0, 2, 2, 3, 3, 4]  # at 0, 0.2, 0.4 (as near to 0.2 as to 0.6), 0.6, 0.8, 1.0
    assert even.fps == 5


@pytest.mark.parametrize("kind", ["mp4", "matroska"])
def test_rates_are_halved_and_doubled(kind):
    data = video(ramp(9), 24, kind=kind)
    assert numbers(decode_clip(data, fps=12)) == [0, 2, 4, 6]
    assert numbers(decode_clip(data, 3, fps=12)) == [0, 2, 4]
    assert numbers(decode_clip(data, 6, fps=48)) == [0, 0, 1, 1, 2, 2]
    assert numbers(decode_clip(data, fps=24)) == list(range(9))
    with pytest.raises(BrokenImage, match="it has 4 frames at 12 per second where 5 are wanted"):
        decode_clip(data, 5, fps=12)


def test_milliseconds_lose_no_frame():
    """At 60 frames per second a webm says 0, 17, 33, 50, ...: no frame is taken twice."""
    starts = tuple(round(i * 1000 / 60) / 1000 for i in range(120))
    line = Timeline(starts, 2.0)
    assert line.resample(60) == list(range(120))
    assert line.resample(30) == list(range(0, 120, 2))


def test_lengths_that_a_model_takes():
    rule = FrameRule(step=4, most=None)
    assert [rule.below(count) for count in (1, 4, 5, 80, 81)] == [1, 1, 5, 77, 81]
    assert [FrameRule(step=1, most=16).below(count) for count in (15, 16, 17)] == [15, 16, 16]


@pytest.mark.parametrize("turned", [0, 90, 180, 270, "mirrored"])
def test_what_a_telephone_turned_is_turned_back(turned):
    frame = ramp(1)[0]
    decoded = decode(video([frame] * 2, codec="libx264rgb", pixels="rgb24", options=LOSSLESS, turned=turned))
    image = Image.fromarray(frame)
    wanted = (
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if turned == "mirrored" else image.rotate(-turned, expand=True)
    )
    assert decoded.size == wanted.size and decoded.tobytes() == wanted.tobytes()


def test_sides_may_be_odd_and_pixels_wide():
    frames = ramp(2, 33, 25)
    clip = decode_clip(video(frames, pixels="yuv444p", options=LOSSLESS))
    assert clip.first.size == (33, 25)
    wide = decode(video(ramp(2, 32, 24), ratio=2))
    assert wide.size == (64, 24)


@pytest.mark.parametrize(("height", "matrix"), [(24, 5), (24, 1), (720, 1), (720, 5)])
@pytest.mark.parametrize("full", [False, True])
def test_colours_follow_the_matrix_and_the_range(height, matrix, full):
    """Saturated colours in every combination, tagged: BT.601 (5) and BT.709 (1), limited and full range."""
    frame = np.zeros((height, 48, 3), np.uint8)
    frame[:, :16], frame[:, 16:32], frame[:, 32:] = (200, 30, 30), (30, 200, 30), (40, 60, 220)
    data = video([frame] * 2, pixels="yuv444p", options=LOSSLESS, matrix=matrix, full=full)
    assert np.abs(np.asarray(decode(data), int) - frame).max() <= 4


def test_untagged_colours_follow_the_size():
    for height, matrix, other in ((24, 5, 1), (720, 1, 5)):
        frame = np.full((height, 48, 3), (200, 30, 30), np.uint8)
        right, wrong = (np.abs(np.asarray(decode(_untagged(frame, how)), int) - frame).max() for how in (matrix, other))
        assert right <= 4 and wrong > 8


def _untagged(frame, matrix):
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8, options=LOSSLESS)
        stream.height, stream.width, stream.pix_fmt = *frame.shape[:2], "yuv444p"
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        picture = picture.reformat(format="yuv444p", dst_colorspace=matrix, dst_color_range=1)
        picture.colorspace, picture.color_range = 2, 0
        container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return file.getvalue()


def test_a_file_that_was_cut_off_is_broken(tmp_path):
    fast = index_first(video(ramp(9, 160, 128), options={"qp": "4"}), tmp_path)
    assert len(decode_clip(fast).frames) == 9
    for data in (fast[: len(fast) * 2 // 3], fast[: len(fast) // 3], fast[:200], video(ramp(9))[:-400]):
        with pytest.raises(BrokenImage):
            decode_clip(data)
    with pytest.raises(BrokenImage, match="it is cut off: of 9 frames it holds"):
        decode_clip(fast[: len(fast) * 2 // 3])
    mkv = video(ramp(30, 160, 128), kind="matroska")
    with pytest.raises(BrokenImage, match="it is cut off: it ends too early"):
        decode_clip(video(ramp(18, 32, 32), 16)[:-300])
    with pytest.raises(BrokenImage, match="cut off"):
        decode_clip(mkv[: len(mkv) // 2])


@pytest.mark.parametrize("kind", ["mp4", "matroska", "png", "npy", "safetensors"])
def test_what_is_damaged_is_told_in_our_words(kind):
    """However a file is asked; decoders raise nearly anything, and their own words help nobody."""
    if kind in ("mp4", "matroska"):
        data = video(ramp(3), kind=kind)
        data = data[:24] + b"\xff" * 60 + data[84:]
    elif kind == "png":
        data = encode(Clip((Image.effect_noise((40, 40), 50).convert("RGB"),)))
        data = data[: len(data) // 2]
    else:
        file = io.BytesIO()
        np.save(file, np.zeros((3, 8, 8, 3), np.uint8))
        data = file.getvalue()[:-5] if kind == "npy" else save({"a": torch.zeros(3, 8, 8, 3)})[:-5]
    for ask in (decode_clip, decode, look, lambda source: decode_clip(source, fps=4)):
        with pytest.raises(BrokenImage) as caught:
            ask(data)
        assert not any(word in str(caught.value) for word in ("Errno", "<none>", "deserializ", "EOF", "avcodec"))


def index_first(data, folder):
    """An mp4 as it is put on the web, whose index comes before the frames."""
    with av.open(io.BytesIO(data)) as old, av.open(f"{folder}/f.mp4", "w", options={"movflags": "faststart"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    return (folder / "f.mp4").read_bytes()


def test_a_damaged_frame_is_not_made_up():
    data = bytearray(video(ramp(9, 160, 128), options={"qp": "10"}))
    start = data.index(b"mdat")
    for at in range(start + 2000, start + 2600):
        data[at] ^= 0x5A
    with pytest.raises(BrokenImage):
        decode_clip(bytes(data))


def test_sound_alone_is_no_clip():
    with pytest.raises(BrokenImage, match="it has no pictures, only sound"):
        decode_clip(sound_alone())


def test_bounds_hold_before_anything_is_decoded(monkeypatch):
    data = video(ramp(9))
    monkeypatch.setattr(videos, "LARGEST_DECODED", 5 * 32 * 24)
    assert len(decode_clip(data, 5).frames) == 5
    with pytest.raises(BrokenImage, match="too long: 9 frames"):
        decode_clip(data)
    monkeypatch.setattr(videos, "MOST_FRAMES", 8)
    with pytest.raises(BrokenImage, match="too long: more than 8 frames"):
        decode_clip(data, 1)
    with pytest.raises(BrokenImage, match="at most 100000 frames"):
        Timeline((0.0, 1e9), 2e9).resample(24)
    monkeypatch.undo()
    monkeypatch.setattr(bounds, "LARGEST_CLIP", 5 * 32 * 24)
    with pytest.raises(BrokenImage, match="more than 5 frames of 32x24"):
        decode_clip(data)
    with pytest.raises(BrokenImage, match="longer than 16:1"):
        decode(video([np.zeros((16, 512, 3), np.uint8)] * 2))


def test_a_codec_or_container_that_is_not_read_is_named():
    with pytest.raises(BrokenImage, match=r"its codec is theora|mpeg2video"):
        decode(video(ramp(2), kind="matroska", codec="mpeg2video", fps=25))
    with pytest.raises(BrokenImage, match="not an image in a format"):
        decode(b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n")


def test_files_are_closed(tmp_path):
    (tmp_path / "a.mp4").write_bytes(video(ramp(3)))
    (tmp_path / "b.mp4").write_bytes(video(ramp(3))[:-400])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        decode_clip(tmp_path / "a.mp4")
        with pytest.raises(BrokenImage):
            decode_clip(tmp_path / "b.mp4")
    assert len(os.listdir("/proc/self/fd")) == before


def test_decoded_frames_are_let_go_at_once():
    """Not when Python looks for circles: memory grows with what is kept of a clip, not with what is decoded."""

    def alive():
        return sum(type(held) is av.VideoFrame for held in gc.get_objects())

    gc.collect()
    before, most = alive(), 0
    gc.disable()
    try:
        with open_footage(video(ramp(24), options={"bf": "0"}, turned=90)) as footage:
            for _ in footage.frames(range(24)):
                most = max(most, alive() - before)
    finally:
        gc.enable()
    assert 1 <= most <= 5


def test_small_clips_are_written_without_loss():
    noise = np.random.default_rng(0).integers(0, 256, (5, 33, 64, 3), dtype=np.uint8)
    clip = Clip(tuple(map(Image.fromarray, noise)), 12.0)
    data = encode(clip, ".mp4")
    back = decode_clip(data)
    assert [frame.tobytes() for frame in back.frames] == [frame.tobytes() for frame in clip.frames]
    assert back.fps == 12 and encode(clip, ".mp4") == data


def test_large_clips_are_written_small_and_close():
    y, x = np.mgrid[0:144, 0:256]
    moving = [np.stack([x * 0.8 + 4 * i, y, (x + y) // 2], axis=2).astype(np.uint8) for i in range(9)]
    clip = Clip(tuple(map(Image.fromarray, moving)), 29.97)
    data = encode(clip, ".mp4")
    back = decode_clip(data)
    error = np.mean([(np.asarray(a, float) - b) ** 2 for a, b in zip(back.frames, moving, strict=True)])
    assert 10 * np.log10(255**2 / error) > 40
    assert len(data) < 9 * 144 * 256 * 3 / 100
    assert back.fps == pytest.approx(29.97, abs=1e-3)
