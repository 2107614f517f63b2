"""Images that others made: folders with captions, tables of paths and prompts."""

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from real_clips import ramp, video

from diffpo.__main__ import main
from diffpo.compare.compare import Judging, compare
from diffpo.compare.stats import Resampling
from diffpo.errors import UserError
from diffpo.media.folder import Media, open_clip, read_media
from diffpo.media.frames import BrokenImage
from diffpo.report.grid import write_grid
from diffpo.report.page import write_report
from diffpo.scorers import ShapesUtility
from diffpo.scorers.scores import read_scores, score_folder

PROMPTS = [
    "a red circle left of a blue square on a white background",
    "a green triangle above a red cross on a black background",
]


def write_images(folder: Path, count: int = 4, shade: int = 0) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i}.png" for i in range(count)]
    for i, name in enumerate(names):
        Image.new("RGB", (64, 64), (40 * i + shade, 0, 0)).save(folder / name)
    return names


def rows(names: list[str]) -> list[dict[str, str]]:
    return [{"file_name": name, "text": PROMPTS[i % 2]} for i, name in enumerate(names)]


def write_rows(path: Path, records: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, records)))
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        lines = [mark.join(records[0]), *(mark.join(map(str, record.values())) for record in records)]
        path.write_text("\n".join(lines))
    return path


def expected(label: str, prefix: str = "") -> list[Media]:
    """Nobody knows the seeds."""
    return [
        Media(file=f"{prefix}{i}.png", prompt=PROMPTS[i % 2], prompt_id=i % 2, seed=None, model=label) for i in range(4)
    ]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "json", "parquet"])
def test_a_folder_with_metadata(tmp_path, kind):
    folder = tmp_path / "theirs"
    write_rows(folder / f"metadata.{kind}", rows(write_images(folder)))
    assert read_media(folder) == expected("theirs")


def test_a_folder_with_a_dictionary_of_prompts(tmp_path):
    names = write_images(tmp_path / "theirs")
    prompts = {row["file_name"]: row["text"] for row in rows(names)}
    (tmp_path / "theirs" / "metadata.json").write_text(json.dumps(prompts))
    assert read_media(tmp_path / "theirs") == expected("theirs")


def test_a_folder_with_captions_beside_the_images(tmp_path):
    folder = tmp_path / "theirs"
    for row in rows(write_images(folder / "deep")):
        (folder / "deep" / row["file_name"]).with_suffix(".txt").write_text(row["text"] + "\n")
    assert read_media(folder) == expected("theirs", "deep/")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "json", "parquet"])
def test_a_table(tmp_path, kind):
    """Paths are relative to it, or absolute; scores lie beside it."""
    names = write_images(tmp_path / "images")
    records = [row | {"file_name": f"images/{row['file_name']}"} for row in rows(names)]
    records[3]["file_name"] = str(tmp_path / records[3]["file_name"])
    table = write_rows(tmp_path / f"theirs.{kind}", records)
    media = read_media(table)
    assert media[:3] == expected("theirs", "images/")[:3] and media[3].file == records[3]["file_name"]
    scored = score_folder(table, [ShapesUtility()])
    assert read_scores(tmp_path / "theirs.scores.parquet") == scored and len(scored.rows) == 4


def test_what_rows_say_is_kept(tmp_path):
    write_images(tmp_path, 2)
    records = [
        {"path": "0.png", "caption": PROMPTS[0], "seed": 7, "model": "one", "prompt_id": 5},
        {"path": "1.png", "caption": PROMPTS[0], "seed": 7, "model": "two", "prompt_id": 5},
    ]
    media = read_media(write_rows(tmp_path / "table.jsonl", records))
    assert [(item.seed, item.model, item.prompt_id) for item in media] == [(7, "one", 5), (7, "two", 5)]


def test_two_folders_of_others_through_all_commands(tmp_path):
    for label, shade in (("one", 0), ("two", 60)):
        write_rows(tmp_path / label / "metadata.csv", rows(write_images(tmp_path / label, shade=shade)))
        score_folder(tmp_path / label, [ShapesUtility()])
    folders = [tmp_path / "one", tmp_path / "two"]
    found = compare(folders, judging=Judging(resampling=Resampling(resamples=100)))
    (comparison,) = found.comparisons
    assert (comparison.baseline, comparison.model, comparison.n_prompts, comparison.n_pairs) == ("one", "two", 2, 4)
    write_grid(tmp_path / "grid.png", folders, prompts=2)
    write_report(tmp_path / "report.html", found, folders)


def test_the_command_says_what_comes_next(tmp_path, monkeypatch, capsys):
    table = write_rows(tmp_path / "theirs.csv", rows(write_images(tmp_path)))
    (tmp_path / "3.png").write_bytes(b"no image")
    monkeypatch.setattr(sys, "argv", ["diffpo", "score", str(table), "-s", "shapes", "-s", "shapes-utility"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert not ended.value.code
    assert f"wrote {tmp_path}/theirs.scores.parquet\nnext: diffpo compare {tmp_path}/theirs.scores.parquet" in out
    assert "1 of 4 images are left out" in err and "3.png is no readable image" in err
    assert len(read_scores(tmp_path / "theirs.scores.parquet").rows) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop(2), r"2\.png has no prompt in .*metadata\.jsonl.*Every image needs one"),
        (lambda r: r[1].update(text="  "), r"1\.png has no prompt"),
        (lambda r: r[1].update(text=None), r"1\.png has no prompt"),
        (lambda r: r.append(dict(r[0])), r"0\.png has more than one row"),
        (lambda r: r.append({"file_name": "9.png", "text": "x"}), r"9\.png has a row in .*but no file"),
        (lambda r: r[0].update(file_name="../0.png"), r"\.\./0\.png.* is not inside the folder"),
        (lambda r: r[0].pop("file_name"), r"line 1 names no image: it needs a path under file_name.*it has text"),
        (lambda r: r[0].update(seed="x"), r"line 1 \(0\.png\): seed is 'x'; it must be a whole number from 0 to"),
        (lambda r: r.clear(), r"0\.png, 1\.png, 2\.png, 3\.png have no prompt"),
    ],
)
def test_metadata_that_does_not_fit_its_images(tmp_path, change, message):
    records = rows(write_images(tmp_path))
    change(records)
    write_rows(tmp_path / "metadata.jsonl", records)
    with pytest.raises(UserError, match=message):
        read_media(tmp_path)


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"no manifest\.jsonl, and no image"):
        read_media(tmp_path)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="it has no rows"):
        read_media(tmp_path / "empty.jsonl")
    (tmp_path / "table.xlsx").write_text("")
    with pytest.raises(UserError, match=r"cannot read images from a \.xlsx file"):
        read_media(tmp_path / "table.xlsx")
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"bad.jsonl, line 1 is not JSON"):
        read_media(tmp_path / "bad.jsonl")
    (tmp_path / "bad.parquet").write_text("PAR1")
    with pytest.raises(UserError, match=r"cannot be read as \.parquet"):
        read_media(tmp_path / "bad.parquet")
    (tmp_path / "bad.json").write_text("3")
    with pytest.raises(UserError, match="must hold a list of rows"):
        read_media(tmp_path / "bad.json")


def test_video_files_are_clips_with_all_their_frames(tmp_path):
    (tmp_path / "a.mp4").write_bytes(video(ramp(5), 16))
    (tmp_path / "b.webm").write_bytes(video(ramp(3), 8, kind="webm", codec="libvpx-vp9"))
    (tmp_path / "c.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"a {name}")
    media = read_media(tmp_path)
    assert [(item.file, item.frames, item.fps) for item in media] == [
        ("a.mp4", 5, 16.0),
        ("b.webm", 3, pytest.approx(8, rel=0.01)),
        ("c.mp4", 1, None),
    ]
    assert len(open_clip(tmp_path, media[0]).frames) == 5
    with pytest.raises(BrokenImage, match=r"c\.mp4 is no readable image"):
        open_clip(tmp_path, media[2])
