"""Tables of clips: imported from folders and tars, scored frame by frame, broken ones named."""

import io
import json
import tarfile

import datasets
import pytest
import torch
from PIL import Image
from real_clips import number_of, ramp, video

from diffpo.curate.imports.run import ImportOptions, import_table
from diffpo.curate.score import score_pairs
from diffpo.data import Pairs
from diffpo.errors import UserError
from diffpo.scorers.base import ImageScorer


class Number(ImageScorer):
    """Scores a frame of a ramp by its number."""

    name, about, scale, origin = "number", "which frame it is", "frames", "this test"

    @property
    def _found(self):
        return {}

    def score(self, images, prompts):
        return torch.tensor([float(number_of(image)) for image in images])


@pytest.mark.parametrize("images", ["embed", "link"])
def test_twin_folders_of_clips_become_a_table(tmp_path, images):
    for side, frames in (("w", ramp(5)), ("l", ramp(3))):
        (tmp_path / "pairs" / side).mkdir(parents=True)
        (tmp_path / "pairs" / side / "cat.mp4").write_bytes(video(frames))
        (tmp_path / "pairs" / side / "dog.webm").write_bytes(video(frames, kind="webm", codec="libvpx-vp9"))
        (tmp_path / "pairs" / side / "cut.mp4").write_bytes(video(frames)[:-200])
    for name in ("cat", "dog", "cut"):
        (tmp_path / "pairs" / f"{name}.txt").write_text(f"a {name}")
    report = import_table(str(tmp_path / "pairs"), tmp_path / "table", ImportOptions(images=images))
    assert (report.pairs, len(report.broken)) == (2, 1) and "cut.mp4" in report.broken[0][1]
    rows = datasets.load_dataset("parquet", data_files=str(tmp_path / "table" / "*.parquet"), split="train")
    assert isinstance(rows.features["chosen"], datasets.Video)
    scored = score_pairs(Pairs(path=str(tmp_path / "table"), resolution=16), Number(), tmp_path / "scored")
    assert scored.splits["train"].scores.tolist() == [[2.0, 1.0], [2.0, 1.0]]  # means of 0 to 4, and of 0 to 2
    again = score_pairs(Pairs(path=str(tmp_path / "scored"), resolution=16), Number(), tmp_path / "again")
    assert again.splits["train"].scores.tolist() == [[2.0, 1.0], [2.0, 1.0]]


def test_twin_folders_of_frame_folders_become_a_table(tmp_path, caplog):
    """A folder that has a caption is a clip; pictures in a folder that has none are pictures."""
    root = tmp_path / "pairs"
    for side, count in (("w", 5), ("l", 3)):
        for name, frames in (("cat", ramp(count)), ("style/dog", ramp(count)), ("style/single", ramp(1))):
            (root / side / name).mkdir(parents=True)
            for i, frame in enumerate(frames):
                Image.fromarray(frame).save(root / side / name / f"{i}.png")
    (root / "cat.txt").write_text("a cat")
    (root / "w/style/dog.txt").write_text("a dog")
    (root / "l/style/dog.txt").write_text("a dog")
    (root / "w/style/single/0.txt").write_text("one")
    report = import_table(str(root), tmp_path / "table", ImportOptions(images="link"))
    assert report.pairs == 3
    scored = score_pairs(Pairs(path=str(tmp_path / "table"), resolution=16), Number(), tmp_path / "scored")
    assert sorted(scored.splits["train"].scores.tolist()) == [[0.0, 0.0], [2.0, 1.0], [2.0, 1.0]]
    with pytest.raises(UserError, match=r"is a folder of frames, which a table names but does not hold: .* link"):
        import_table(str(root), tmp_path / "embedded", ImportOptions())


def test_it_is_said_that_folders_stand_for_clips(tmp_path, caplog):
    for name, count in (("a", 2), ("b", 4)):
        (tmp_path / name).mkdir()
        for i, frame in enumerate(ramp(count)):
            Image.fromarray(frame).save(tmp_path / name / f"{i}.png")
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "x", "chosen": "a", "rejected": "b"}))
    source = Pairs(path=str(tmp_path / "pairs.jsonl"), resolution=16)
    for out in ("one", "two"):
        score_pairs(source, Number(), tmp_path / out)
    assert caplog.text.count("1 cells of `chosen` name folders: their pictures are taken for the frames") == 1


def test_tars_of_clips_become_a_table(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        files = {"a.chosen.mp4": video(ramp(5)), "a.rejected.mp4": video(ramp(5)), "a.txt": b"a cat"}
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert import_table(str(tmp_path / "0.tar"), tmp_path / "table", ImportOptions()).pairs == 1
    about = json.loads((tmp_path / "table" / "import.json").read_text())
    assert about["report"]["pairs"] == 1
