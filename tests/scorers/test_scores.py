"""Media folders and score tables."""

import json
import os
import shutil
import signal
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from diffpo.disk.rows import RowStore
from diffpo.errors import UserError
from diffpo.media.folder import Media, read_media, write_manifest
from diffpo.media.frames import Clip, encode
from diffpo.scorers import ShapesUtility, judging
from diffpo.scorers.base import ImageScorer
from diffpo.scorers.scores import read_scores, score_folder, score_share, write_scores


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What one test scores is not known to the next one."""
    monkeypatch.setenv("DIFFPO_CACHE", str(tmp_path / "cache"))


@dataclass(frozen=True, kw_only=True)
class Brightness(ImageScorer):
    """A real scorer of the simplest kind, which keeps count of what it was asked."""

    name = "brightness"
    about = "How bright an image is."
    scale: float = 1.0
    seen: list[str] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)

    @property
    def _found(self) -> dict[str, Any]:
        return {}

    def score(self, images, prompts):
        self.seen.extend(prompts)
        self.images.extend(images)
        return torch.tensor([self.scale * sum(image.resize((1, 1)).getpixel((0, 0))) for image in images])


class Darkness(Brightness):
    """Another."""

    name = "darkness"


class Watching(Brightness):
    """It takes frames, and tells the largest difference between two of them."""

    name = "watching"
    takes_frames = True

    def judge(self, media, prompts):
        seen = [Brightness.score(self, clip.frames, prompts * len(clip.frames)) for clip in media]
        return torch.stack([scores.max() - scores.min() for scores in seen])


class Undefined(Brightness):
    """Its numbers are none."""

    def score(self, images, prompts):
        return super().score(images, prompts) * float("nan")


@pytest.fixture
def folder(folders, tmp_path):
    """A copy of the base's folder, not yet scored."""
    copy = shutil.copytree(folders[0], tmp_path / "media")
    (copy / "scores.parquet").unlink()
    return copy


def test_the_table_has_the_promised_columns(folders):
    table = pq.read_table(folders[0] / "scores.parquet")
    assert table.column_names[:7] == ["file", "prompt", "prompt_id", "seed", "model", "scorer", "score"]
    assert table.num_rows == 6 * 2 * 2
    scores = read_scores(folders[0])
    assert scores.scorers == ["shapes-utility", "shapes"] and scores.models == ["base"]
    assert scores.provenance["shapes-utility"] == ShapesUtility().provenance


def test_only_what_changed_is_scored_again(folder):
    scorer = Brightness()
    first = score_folder(folder, [scorer])
    assert len(scorer.seen) == 12
    assert score_folder(folder, [scorer]) == first and len(scorer.seen) == 12

    media = read_media(folder)
    Image.new("RGB", (64, 64), "white").save(folder / media[3].file)
    changed = score_folder(folder, [scorer])
    assert scorer.seen[12:] == [media[3].prompt]
    assert [a == b for a, b in zip(first.rows, changed.rows, strict=True)] == [i != 3 for i in range(12)]

    score_folder(folder, [Brightness(scale=2.0, seen=scorer.seen)])  # another provenance
    assert len(scorer.seen) == 25


def test_scores_that_others_made_stay(folder, monkeypatch, tmp_path):
    """A folder that was copied from elsewhere: nothing of it is in this cache, and only what lacks is scored."""
    scorer = Brightness()
    whole = score_folder(folder, [scorer])
    write_scores(folder / "scores.parquet", replace(whole, rows=whole.rows[:4]))
    monkeypatch.setenv("DIFFPO_CACHE", str(tmp_path / "elsewhere"))
    assert score_folder(folder, [scorer]) == whole
    assert len(scorer.seen) == 20


def test_scores_without_the_contents_hash_stay(folder):
    """As tables have them that somebody else wrote: nobody can say that they are of other images."""
    table = score_folder(folder, [Darkness()])
    write_scores(folder / "scores.parquet", replace(table, rows=[replace(row, digest="") for row in table.rows]))
    assert score_folder(folder, [Brightness()]).scorers == ["brightness", "darkness"]


def test_the_same_image_is_scored_once_wherever_it_lies(folder):
    """Also under another name, of another model; not for another prompt."""
    scorer = Brightness()
    first = score_folder(folder, [scorer])
    copy = shutil.copytree(folder, folder.with_name("copy"), ignore=shutil.ignore_patterns("scores.parquet"))
    write_manifest(copy, [replace(item, model="other") for item in read_media(copy)])
    assert [row.score for row in score_folder(copy, [scorer]).rows] == [row.score for row in first.rows]
    assert len(scorer.seen) == 12
    write_manifest(copy, [replace(item, prompt="another") for item in read_media(copy)])
    score_folder(copy, [scorer])
    assert len(scorer.seen) == 24


class Deadly(Brightness):
    """Its process is killed where it is asked for more than five images in all."""

    def score(self, images, prompts):
        if len(self.seen) + len(images) > 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(images, prompts)


def in_process(folder, scorer):
    """Score in a process of its own; returns its number."""
    child = os.fork()
    if not child:
        try:
            score_folder(folder, [scorer])
            os._exit(0)
        finally:
            os._exit(1)
    return child


def test_a_kill_loses_one_group(folder, monkeypatch):
    """Groups of four images; the process dies in the second group, and the next one in the third."""
    monkeypatch.setattr(judging, "GROUP", 4)
    expected = score_folder(shutil.copytree(folder, folder.with_name("straight")), [Brightness()])
    shutil.rmtree(Path(os.environ["DIFFPO_CACHE"]))
    for known in (4, 8):
        os.waitpid(in_process(folder, Deadly()), 0)
        assert len(RowStore("scores", {"format": 1, "scorer": Brightness().provenance})) == known
        assert not (folder / "scores.parquet").exists()
    scorer = Brightness()
    assert score_folder(folder, [scorer]) == expected and len(scorer.seen) == 4


def test_two_calls_at_once_lose_nothing(folder):
    """Ten times two processes with a scorer each: the table has both."""
    for _ in range(10):
        (folder / "scores.parquet").unlink(missing_ok=True)
        shutil.rmtree(Path(os.environ["DIFFPO_CACHE"]), ignore_errors=True)
        children = [in_process(folder, scorer) for scorer in (Brightness(), Darkness())]
        assert all(os.waitpid(child, 0)[1] == 0 for child in children)
        table = read_scores(folder)
        assert sorted(table.scorers) == ["brightness", "darkness"] and len(table.rows) == 24
        assert set(table.provenance) == {"brightness", "darkness"}


def test_a_clip_has_the_mean_score_of_its_frames_and_the_scorers_name_says_so(tmp_path):
    """Black and white of 10 x 10: 0 and 3 x 255. A scorer that takes frames is handed both together."""
    frames = [Image.new("RGB", (10, 10), color) for color in ("black", "white")]
    (tmp_path / "clip.png").write_bytes(encode(Clip(tuple(frames))))
    clip = Media(file="clip.png", prompt="a", prompt_id=0, seed=0, model="m", frames=2)
    write_manifest(tmp_path, [clip])
    table = score_folder(tmp_path, [Brightness(), Watching()])
    assert [(row.scorer, row.score) for row in table.rows] == [("brightness@frames", 765 / 2), ("watching", 765.0)]
    assert table.provenance["brightness@frames"]["clips"] == "mean over frames"
    assert "clips" not in table.provenance["watching"] and table.called("brightness") == "brightness@frames"
    scorer = Brightness()
    assert score_folder(tmp_path, [scorer]) == table and not scorer.seen, "known by its name"
    write_manifest(tmp_path, [replace(clip, frames=1)])
    assert [(row.scorer, row.score) for row in score_folder(tmp_path, [Brightness()]).rows] == [("brightness", 0.0)]


def test_so_many_frames_of_a_clip_are_judged(tmp_path):
    """Levels 0, 10, ..., 70: of three frames those of 0, 40 and 70, since halves round to even; of ten all eight."""
    frames = [Image.new("RGB", (10, 10), (level, 0, 0)) for level in range(0, 80, 10)]
    for wanted, mean in ((1, 0.0), (2, 35.0), (3, 110 / 3), (10, 35.0), (None, 35.0)):
        scorer = Brightness(frames=wanted)
        scores = scorer.judge([Clip(tuple(frames)), Clip(tuple(frames[:1]))], ["a", "b"])
        assert scores.tolist() == pytest.approx([mean, 0.0]) and scorer.seen == ["a"] * min(wanted or 8, 8) + ["b"]
    assert Brightness(frames=3).provenance["frames"] == 3 and "frames" not in Brightness().provenance


def test_other_scorers_rows_stay_unless_their_image_changed(folder):
    score_folder(folder, [ShapesUtility()])
    table = score_folder(folder, [Brightness()])
    assert table.scorers == ["brightness", "shapes-utility"] and len(table.rows) == 24
    Image.new("RGB", (64, 64), "white").save(folder / read_media(folder)[0].file)
    assert len(score_folder(folder, [Brightness()]).rows) == 23


def test_images_are_decoded_once_for_all_scorers(folder):
    """Both are handed the very same objects."""
    one, other = Brightness(), Darkness()
    score_folder(folder, [one, other])
    assert len(one.images) == 12
    assert all(a is b for a, b in zip(one.images, other.images, strict=True))


def test_scores_that_are_no_numbers(folder):
    with pytest.raises(UserError, match=r"brightness scored .*000000-s0\.png as nan"):
        score_folder(folder, [Undefined()])
    table = score_folder(folder, [Brightness()])
    write_scores(folder / "scores.parquet", replace(table, rows=[replace(table.rows[0], score=float("inf"))]))
    with pytest.raises(UserError, match="as inf"):
        read_scores(folder)


def test_broken_images_are_left_out_counted_and_named(folder, capsys):
    broken = folder / "000001-s0.png"
    whole = score_folder(folder, [Brightness()])
    broken.write_bytes(broken.read_bytes()[:60])
    table = score_folder(folder, [Brightness()])
    assert [row.file for row in whole.rows if row not in table.rows] == [broken.name]
    assert list(table.left_out) == [str(broken)]
    said = capsys.readouterr().err
    assert "1 of 12 images are left out" in said and f"{broken} is no readable image" in said
    for item in read_media(folder):
        (folder / item.file).write_bytes(b"no image")
    with pytest.raises(UserError, match=r"none of the 12 images of .* can be read"):
        score_folder(folder, [Brightness()])
    broken.unlink()
    with pytest.raises(UserError, match=r"000001-s0\.png cannot be read.*diffpo generate"):
        score_folder(folder, [Brightness()])


def test_processes_score_their_shares_and_one_brings_them_together(folder):
    """Three processes; the second is killed before it begins. Nothing is scored twice."""
    alone = score_folder(shutil.copytree(folder, folder.with_name("alone")), [Brightness()])
    shutil.rmtree(Path(os.environ["DIFFPO_CACHE"]))
    scorer, later = Brightness(), Brightness()
    for rank in (0, 2):
        score_share(folder, [scorer], rank=rank, world=3)
    assert len(scorer.seen) == 8 and not (folder / "scores.parquet").exists()
    for rank in (0, 1):
        score_share(folder, [later], rank=rank, world=2)
    assert len(later.seen) == 4
    assert score_folder(folder, [later]) == alone and len(later.seen) == 4
    assert [path.name for path in folder.glob("*.parquet")] == ["scores.parquet"]
    assert read_scores(folder) == alone


def test_a_scorer_is_asked_once(folder):
    with pytest.raises(UserError, match="asked once, got brightness, brightness"):
        score_folder(folder, [Brightness(), Brightness(scale=2.0)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, r"line 2 \(000000-s1\.png\) lacks prompt"),
        ({"seed": "x"}, "seed is .x.; it must be a whole number"),
        ({"file": "../secret.png"}, "not inside the folder"),
        ({"file": "/etc/passwd"}, "not inside the folder"),
    ],
)
def test_broken_manifests(folder, change, message):
    lines = (folder / "manifest.jsonl").read_text().split("\n")
    lines[1] = json.dumps({**json.loads(lines[1]), **change})
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=message):
        read_media(folder)


def test_folders_that_are_none(folder, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_media(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no manifest\.jsonl, and no image"):
        read_media(tmp_path / "empty")
    with pytest.raises(UserError, match="Run `diffpo score"):
        read_scores(folder)
    with pytest.raises(UserError, match="at least one scorer"):
        score_folder(folder, [])
    write_manifest(folder, [])
    with pytest.raises(UserError, match="names no image"):
        read_media(folder)
    (folder / "manifest.jsonl").write_text('{"file": "0000')
    with pytest.raises(UserError, match="line 1 is not JSON"):
        read_media(folder)


def test_tables_that_are_none(tmp_path):
    (tmp_path / "scores.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="no readable score table"):
        read_scores(tmp_path)
    import pyarrow as pa

    pq.write_table(pa.table({"prompt": ["a"], "score": [1.0]}), tmp_path / "scores.parquet")
    with pytest.raises(UserError, match=r"lacks the columns file, prompt_id.*it has prompt, score"):
        read_scores(tmp_path / "scores.parquet")
