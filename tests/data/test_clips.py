"""Pairs of clips: one rate, one length for both sides, buckets by length and size, and nothing cut in silence."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from real_clips import ramp, sound_alone, video
from tiny_encoder import TinyEncoder

from diffpo.curate.inspect import guess_source, inspect
from diffpo.data import Pairs, load_splits
from diffpo.data.cache import EncodingCache
from diffpo.data.encode import LiveEncodings
from diffpo.data.loader import PairLoader
from diffpo.errors import UserError
from diffpo.media.footage import FrameRule

CLIPS = FrameRule(step=4, most=None, fps=8.0)
"""What a model with a causal VAE takes."""


class FrameEncoder(TinyEncoder):
    """Encodes every fourth frame alone, as an image: the first one, the fifth one, ..."""

    def __init__(self, fingerprint="clips", rule=CLIPS):
        super().__init__(fingerprint, rule=rule)

    def encode_media(self, frames):
        return super().encode_media(frames[:, :: self.rule.step])


@pytest.fixture
def table(tmp_path):
    """Write a table whose sides are files of these bytes."""

    def write(rows, name="clips.jsonl"):
        lines = []
        for i, (chosen, rejected) in enumerate(rows):
            row = {"prompt": f"clip {i}"}
            for side, data in (("chosen", chosen), ("rejected", rejected)):
                suffix = "png" if data[:4] == b"\x89PNG" else "mp4"
                (tmp_path / f"{side}{i}.{suffix}").write_bytes(data)
                row[side] = f"{side}{i}.{suffix}"
            lines.append(json.dumps(row))
        (tmp_path / name).write_text("\n".join(lines))
        return str(tmp_path / name)

    return write


def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(ramp(1)[0]).save(path)
    return path.read_bytes()


def opened(source, encoder=None, table=None):
    encoder = encoder or FrameEncoder()
    cache = EncodingCache(table or load_splits(source).train, source, encoder, seed=0)
    cache.fill()
    return cache.open()


@pytest.mark.parametrize("geometry", [{}, {"crop": "random", "flip": True, "buckets": True}], ids=["plain", "moving"])
def test_cached_and_live_clips_are_the_same_bits_and_are_kept_at_the_mode(table, geometry, tmp_path):
    rows = [(video(ramp(9)), video(ramp(9), 24)), (video(ramp(5)), video(ramp(5), turned=90)), (picture(tmp_path),) * 2]
    source = Pairs(path=table(rows), resolution=16, unequal="trim", **geometry)
    stored, live = opened(source), LiveEncodings(load_splits(source).train, source, FrameEncoder(), seed=0)
    assert stored.broken == live.broken == {} and stored.fps == live.fps == 8
    assert (stored.targets == live.targets).all()
    assert stored.targets[:, 0].tolist() == [
        1,
        5,
        1,
    ]  # 9 frames at 24 per second: 3 at 8, and the model takes 1
    for i in range(3):
        a, b = stored.images(i), live.images(i)
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        assert ("chosen_std" in a) == (i != 1), "latents of clips are the mode, those of images are drawn"
    loader = PairLoader(load_splits(source).train, stored, seed=0, caption_dropout=0.0)
    assert sorted(len(group) for group in loader.groups) == [1, 2]
    batch = loader.batch([1], 0)
    assert batch.latent.chosen.shape[2] == 2 and batch.latent.rejected.shape == batch.latent.chosen.shape
    assert torch.equal(batch.latent.chosen, loader.batch([1], 1).latent.chosen)


def test_images_and_clips_of_all_lengths_stand_in_one_table(table, tmp_path):
    one = picture(tmp_path)
    rows = [(video(ramp(n)),) * 2 for n in (5, 9, 5)] + [(one, one)]
    encodings = opened(source := Pairs(path=table(rows), resolution=16))
    loader = PairLoader(load_splits(source).train, encodings, seed=0, caption_dropout=0.0)
    assert {tuple(group.tolist()) for group in loader.groups} == {(0, 2), (1,), (3,)}
    assert encodings.targets.tolist() == [[5, 16, 16], [9, 16, 16], [5, 16, 16], [1, 16, 16]]


def test_what_is_cut_is_said_and_the_same_clip_is_encoded_once(table, caplog):
    clip = video(ramp(8))
    source = Pairs(path=table([(clip, clip), (video(ramp(7)), clip)]), resolution=16)
    encoder = FrameEncoder()
    with caplog.at_level(logging.WARNING):
        encodings = opened(source, encoder)
    assert encodings.targets[:, 0].tolist() == [5, 5] and encoder.images == 2
    said = next(text for text in caplog.messages if "chosen" in text)
    assert "2 of 2 clips have lengths that the model does not take (k * 4 + 1 frames)" in said
    assert "Frames (clips): 8 to 5 (1), 7 to 5 (1)." in said


def test_sides_of_two_lengths_stop_the_run_unless_it_is_said_what_becomes_of_them(table):
    path = table([(video(ramp(9)), video(ramp(9))), (video(ramp(9)), video(ramp(5)))])
    encoder = FrameEncoder()
    with pytest.raises(UserError, match="row 1: its clips differ in length: chosen has 9 frames, rejected has 5"):
        opened(Pairs(path=path, resolution=16), encoder)
    assert encoder.images == 0
    dropped = opened(Pairs(path=path, resolution=16, unequal="drop"))
    assert "differ in length" in dropped.broken[1] and dropped.targets[:, 0].tolist() == [9, 0]
    trimmed = opened(Pairs(path=path, resolution=16, unequal="trim"))
    assert trimmed.targets[:, 0].tolist() == [9, 5]
    assert trimmed.images(1)["chosen_mean"].shape == trimmed.images(1)["rejected_mean"].shape


def test_a_number_of_frames_is_taken_of_all_and_shorter_clips_are_dropped_and_named(table):
    path = table([(video(ramp(9)), video(ramp(7))), (video(ramp(9)), video(ramp(4)))])
    encodings = opened(Pairs(path=path, resolution=16, frames=5))
    assert encodings.targets[:, 0].tolist() == [5, 0]
    assert "rejected1.mp4: it has 4 frames at 8 per second where data.frames=5 are wanted" in encodings.broken[1]
    at_four = opened(Pairs(path=path, resolution=16, frames=1, fps=4))
    assert at_four.broken == {} and at_four.fps == 4
    for frames, nearest in ((6, "5 or 9"), (80, "77 or 81")):
        with pytest.raises(UserError, match=rf"data.frames={frames} does not fit this model: .*Use {nearest}\."):
            opened(Pairs(path=path, resolution=16, frames=frames))
    with pytest.raises(UserError, match="Use 5"):
        opened(Pairs(path=path, resolution=16, frames=9), FrameEncoder(rule=FrameRule(4, 7, 8.0)))


def test_another_rate_or_length_reads_no_stale_row(table):
    path = table([(video(ramp(9)),) * 2])
    seen = set()
    for settings in ({}, {"fps": 4}, {"frames": 5}, {"fps": 16}):
        encodings = opened(Pairs(path=path, resolution=16, **settings))
        seen.add(encodings.images(0)["chosen_mean"].numpy().tobytes())
    assert len(seen) == 4


def test_broken_clips_drop_their_row(table, tmp_path):
    whole = video(ramp(5))
    path = table([(whole, whole), (whole, whole[:-300]), (sound_alone(), whole)])
    for encodings in (
        opened(source := Pairs(path=path, resolution=16)),
        LiveEncodings(load_splits(source).train, source, FrameEncoder(), seed=0),
    ):
        assert list(encodings.broken) == [1, 2]
        assert encodings.broken[1].startswith("rejected image") and "rejected1.mp4" in encodings.broken[1]
        assert "it has no pictures, only sound" in encodings.broken[2]


def test_a_model_of_images_refuses_clips_unless_their_first_frames_are_asked_for(table, tmp_path):
    path = table([(video(ramp(5)), video(ramp(5))), (picture(tmp_path),) * 2])
    encodings = opened(Pairs(path=path, resolution=16), TinyEncoder())
    assert "it is a clip, and this model takes images: data.frames=1 takes the first frames" in encodings.broken[0]
    assert encodings.targets[:, 0].tolist() == [0, 1] and encodings.fps is None
    assert opened(Pairs(path=path, resolution=16, frames=1), TinyEncoder()).broken == {}
    with pytest.raises(UserError, match=r"data\.frames=16, but this model takes images"):
        opened(Pairs(path=path, resolution=16, frames=16), TinyEncoder())


def test_folders_of_frames_and_arrays_are_clips_in_a_table(tmp_path):
    for name, frames in (("a", ramp(5)), ("b", ramp(5, 24, 32))):
        (tmp_path / name).mkdir()
        for i, frame in enumerate(frames):
            Image.fromarray(frame).save(tmp_path / name / f"{i}.png")
    np.save(tmp_path / "c.npy", np.stack(ramp(5)))
    rows = [{"prompt": "x", "chosen": "a", "rejected": "b"}, {"prompt": "y", "chosen": "c.npy", "rejected": "a"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = Pairs(path=str(tmp_path / "t.jsonl"), resolution=16)
    encoder = FrameEncoder()
    assert opened(source, encoder).targets[:, 0].tolist() == [5, 5] and encoder.images == 3
    Image.fromarray(ramp(9)[8]).save(tmp_path / "a" / "3.png")
    again = FrameEncoder()
    opened(source, again)
    assert again.images == 1, "a frame changed: the clip is another one"


def test_clips_inside_a_table_as_datasets_has_them(tmp_path):
    import datasets

    clip = {"bytes": video(ramp(5)), "path": None}
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "chosen": datasets.Video(), "rejected": datasets.Video()}
    )
    rows = datasets.Dataset.from_list([{"prompt": "x", "chosen": clip, "rejected": clip}], features=features)
    rows.save_to_disk(tmp_path / "saved")
    rows.to_parquet(tmp_path / "rows.parquet")
    for path in ("saved", "rows.parquet"):
        encodings = opened(Pairs(path=str(tmp_path / path), resolution=16))
        assert encodings.targets.tolist() == [[5, 16, 16]]


def test_inspection_says_lengths_and_rates(table, tmp_path):
    path = table(
        [(video(ramp(9)), video(ramp(9), 24)), (video(ramp(9)), video(ramp(9))[:-300]), (picture(tmp_path),) * 2]
    )
    report = inspect(guess_source(path)).train
    assert report.lengths == {(9, 8.0): 1, (9, 24.0): 1, (1, None): 2}
    assert report.unlike == {0: "chosen has 9 frames at 8 per second, rejected has 9 frames at 24 per second"}
    assert list(report.broken) == [1]
    assert report.summary["clips"].splitlines()[0] == "1 frame: 50%"
