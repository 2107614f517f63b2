"""Media folders and score tables."""

import json
import shutil
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from diffpo.errors import UserError
from diffpo.media.folder import read_media, write_manifest
from diffpo.scorers import Scorer, ShapesUtility
from diffpo.scorers.scores import read_scores, score_folder, write_scores


@dataclass(frozen=True, kw_only=True)
class Brightness(Scorer):
    """A real scorer of the simplest kind, which keeps count of what it was asked."""

    name = "brightness"
    scale: float = 1.0
    seen: list[str] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)

    @property
    def provenance(self) -> dict[str, Any]:
        return {"scorer": self.name, "scale": self.scale}

    def score(self, images, prompts):
        self.seen.extend(prompts)
        self.images.extend(images)
        return torch.tensor([self.scale * sum(image.resize((1, 1)).getpixel((0, 0))) for image in images])


class Darkness(Brightness):
    """Another."""

    name = "darkness"


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


def test_a_kill_loses_nothing(folder):
    """Half of the rows are there: the other half is scored, and the table is the same as without the kill."""
    scorer = Brightness()
    whole = score_folder(folder, [scorer])
    write_scores(folder / "scores.parquet", replace(whole, rows=whole.rows[:4]))
    assert score_folder(folder, [scorer]) == whole
    assert len(scorer.seen) == 20


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
    scorer, later = Brightness(), Brightness()
    parts = [score_folder(folder, [scorer], rank=rank, world=3) for rank in (0, 2)]
    assert [len(part.rows) for part in parts] == [4, 4] and not (folder / "scores.parquet").exists()
    assert [len(score_folder(folder, [later], rank=rank, world=2).rows) for rank in (0, 1)] == [6, 6]
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
        ({"seed": "x"}, "must be integers"),
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
    with pytest.raises(UserError, match="line 1 is broken"):
        read_media(folder)


def test_tables_that_are_none(tmp_path):
    (tmp_path / "scores.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="no readable score table"):
        read_scores(tmp_path)
    import pyarrow as pa

    pq.write_table(pa.table({"prompt": ["a"], "score": [1.0]}), tmp_path / "scores.parquet")
    with pytest.raises(UserError, match=r"lacks the columns file, prompt_id.*it has prompt, score"):
        read_scores(tmp_path / "scores.parquet")
