"""Clips that are no video file: folders of frames and arrays, and nothing that could run code."""

import io
import pickle
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from real_clips import number_of, ramp
from safetensors.torch import save

from diffpo.compat import quiet_libraries
from diffpo.media.frames import BrokenImage, decode, decode_clip, parts_of


def numbers(clip):
    return [number_of(frame) for frame in clip.frames]


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def pt(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def test_a_folder_of_frames_is_a_clip_in_the_order_of_the_numbers(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    for i, frame in enumerate(ramp(12)):
        Image.fromarray(frame).save(folder / f"frame_{i}.png")
    (folder / "notes.txt").write_text("no frame")
    (folder / ".hidden.png").write_bytes(b"")
    clip = decode_clip(str(folder))
    assert numbers(clip) == list(range(12)) and clip.fps is None
    assert numbers(decode_clip(folder, 5, fps=16)) == [0, 1, 2, 3, 4]
    assert len(parts_of(folder)) == 12 and parts_of(folder / "frame_0.png") == [folder / "frame_0.png"]
    Image.new("RGB", (8, 8)).save(folder / "frame_3.png")
    with pytest.raises(BrokenImage, match="different sizes"):
        decode_clip(folder)


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 3, 1, 2), (3, 0, 1, 2)])
@pytest.mark.parametrize("kind", ["npy", "pt", "safetensors"])
def test_arrays_are_clips_whichever_axis_holds_the_colours(axes, kind, tmp_path):
    frames = np.stack(ramp(5)).transpose(axes)
    for array in (frames, (frames / 255).astype(np.float32), (frames / 255).astype(np.float16)):
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        data = npy(array) if kind == "npy" else pt(tensor) if kind == "pt" else save({"frames": tensor})
        (tmp_path / f"a.{kind}").write_bytes(data)
        for source in (data, tmp_path / f"a.{kind}"):
            clip = decode_clip(source)
            assert numbers(clip) == [0, 1, 2, 3, 4] and clip.fps is None
        assert decode(data).tobytes() == ramp(1)[0].tobytes()


class Evil:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (npy(np.zeros((5, 8, 8, 4), np.uint8)), r"its shape is \[5 8 8 4\]; allowed are"),
        (npy(np.zeros((0, 8, 8, 3), np.uint8)), "its shape is"),
        (npy(np.zeros((5, 8, 8, 3), np.int64)), "its numbers are int64"),
        (npy(np.full((5, 8, 8, 3), -1.0)), r"lie between -1 and -1; floats must lie in \[0, 1\]"),
        (npy(np.full((5, 8, 8, 3), np.nan)), r"floats must lie in \[0, 1\]"),
        (npy(np.array([Evil()], object)), "it cannot be decoded"),
        (pt({"a": torch.zeros(2), "b": torch.zeros(2)}), "it must hold one array"),
        (save({"a": torch.zeros(2), "b": torch.zeros(2)}), "it must hold one array"),
        (npy(np.zeros((5, 8, 200, 3), np.uint8)), "longer than 16:1"),
        (npy(np.zeros((5, 8, 8, 3), np.uint8))[:-9], "ValueError"),
        (pickle.dumps(Evil()), "not an image"),
    ],
)
def test_what_is_no_clip_is_broken(data, reason, capsys):
    with pytest.raises(BrokenImage, match=reason):
        decode_clip(data)
    assert "run" not in capsys.readouterr().out


def test_a_pickle_in_a_torch_file_does_not_run(capsys):
    with pytest.raises(BrokenImage):
        decode_clip(pt(Evil()))
    assert "run" not in capsys.readouterr().out


def test_a_file_of_a_newer_pickle_is_read_without_a_word(tmp_path):
    torch.save(torch.zeros(2, 8, 8, 3, dtype=torch.uint8), tmp_path / "a.pt", pickle_protocol=3)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        quiet_libraries()
        assert len(decode_clip(tmp_path / "a.pt").frames) == 2
    assert not said
