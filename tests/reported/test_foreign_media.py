"""Folders and tables of images that others made: hidden files, endings, links, seeds, pipes."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from diffpo.errors import UserError
from diffpo.generation.settings import GenerateOptions
from diffpo.media.folder import Media, manifest_line, read_media, read_settings, write_settings
from diffpo.scorers.scores import ScoreRow, ScoreTable, read_scores, write_scores

LARGEST = 2**63 - 1


def picture(path: Path, prompt: str | None = "a red circle") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {".jfif": "JPEG", ".apng": "PNG"}.get(path.suffix.lower())
    Image.new("RGB", (32, 32), "red").save(path, kind)
    if prompt is not None:
        path.with_suffix(".txt").write_text(prompt)
    return path


def test_hidden_files_are_no_images(tmp_path):
    picture(tmp_path / "in" / "a.png")
    for name in (".ipynb_checkpoints/a.png", "._a.png", "__MACOSX/a.png", ".trash/deep/a.png"):
        picture(tmp_path / "in" / name)
    assert [item.file for item in read_media(tmp_path / "in")] == ["a.png"]


def test_one_list_of_endings(tmp_path, caplog):
    names = [f"{i}{end}" for i, end in enumerate((".png", ".jfif", ".gif", ".avif", ".webp", ".JPEG", ".tif", ".bmp"))]
    for name in names:
        picture(tmp_path / name)
    (tmp_path / "x.heic").write_bytes(b"")
    (tmp_path / "notes.md").write_text("")
    assert sorted(item.file for item in read_media(tmp_path)) == names
    assert "the formats of 1 files are not read, they are left out: x.heic" in caplog.text


@pytest.mark.parametrize("kind", ["folder", "metadata", "manifest", "scores"])
def test_links_out_of_a_folder_are_refused(tmp_path, kind):
    """A report would publish what they point at."""
    picture(tmp_path / "secret.png")
    folder = picture(tmp_path / "in" / "a.png").parent
    (folder / "b.png").symlink_to(tmp_path / "secret.png")
    (folder / "b.txt").write_text("a secret")
    items = [Media(file=name, prompt=name, prompt_id=i, seed=0, model="m") for i, name in enumerate(("a.png", "b.png"))]
    if kind == "metadata":
        (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "x"}))
    if kind == "manifest":
        (folder / "manifest.jsonl").write_text("".join(map(manifest_line, items)))
    if kind == "scores":
        write_scores(folder / "scores.parquet", ScoreTable([ScoreRow.of(item, "s", 0.0) for item in items]))
    with pytest.raises(UserError, match=r"'b\.png' is not inside the folder"):
        (read_scores if kind == "scores" else read_media)(folder)


def test_links_within_a_folder_are_followed_and_tables_may_name_images_anywhere(tmp_path):
    folder = picture(tmp_path / "in" / "a.png").parent
    (folder / "b.png").symlink_to("a.png")
    (folder / "b.txt").write_text("the same")
    assert len(read_media(folder)) == 2
    (tmp_path / "far").mkdir()
    table = tmp_path / "far" / "table.jsonl"
    table.write_text(json.dumps({"file": "../in/a.png", "prompt": "x"}))
    assert len(read_media(table)) == 1


def test_pipes_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "table.jsonl").write_text(json.dumps({"file": "pipe.png", "prompt": "x"}))
    with pytest.raises(UserError, match=r"pipe\.png has a row"):
        read_media(tmp_path / "table.jsonl")


@pytest.mark.parametrize(
    ("seed", "kept"), [(LARGEST, LARGEST), (str(LARGEST), LARGEST), (7.0, 7), ("", None), (None, None)]
)
def test_seeds_are_kept(tmp_path, seed, kept):
    picture(tmp_path / "a.png")
    row = {"file_name": "a.png", "text": "x", "seed": seed}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    (item,) = read_media(tmp_path)
    assert item.seed == kept
    (tmp_path / "manifest.jsonl").write_text(manifest_line(item))
    assert read_media(tmp_path) == [item]
    write_scores(tmp_path / "scores.parquet", ScoreTable([ScoreRow.of(item, "s", 0.0)]))
    assert read_scores(tmp_path).rows[0].seed == kept


@pytest.mark.parametrize("seed", [2**64 - 1, -1, 1.5, "x", "1e3", 2**70])
def test_seeds_that_cannot_be_kept_are_refused_with_the_largest_that_can(tmp_path, seed):
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "x", "seed": seed}))
    with pytest.raises(UserError, match=rf"line 1 \(a\.png\): seed is .* from 0 to {LARGEST}"):
        read_media(tmp_path)


def test_seeds_of_generate_are_refused_at_the_start():
    with pytest.raises(UserError, match=f"at most {LARGEST}"):
        GenerateOptions(model="x", seeds=(2**64 - 1,))
    options = GenerateOptions(model="x", seeds=(LARGEST,))
    with pytest.raises(UserError, match=f"too large: at most {LARGEST}"):
        options.seeds_of("a prompt", 0)
    shared = GenerateOptions(model="x", seeds=(LARGEST,), noise="shared")
    assert shared.seeds_of("a prompt", 5) == (LARGEST,)


def test_settings_name_no_home_and_are_found_again(tmp_path, monkeypatch):
    """Where weights lie is said from the folder's place; a folder that moves with them still finds them."""
    home = tmp_path / "home" / "alice"
    monkeypatch.setenv("HOME", str(home))
    for place in (home / "runs" / "mine", home / "media", tmp_path / "scratch"):
        place.mkdir(parents=True)
    settings = {"label": "x", "model": "owner/name", "tuned": str(home / "runs" / "mine")}
    for folder in (home / "media", tmp_path / "scratch"):
        write_settings(folder, settings)
        assert "alice" not in (folder / "settings.json").read_text()
        assert read_settings(folder)["model"] == "owner/name"
    assert read_settings(home / "media") == settings
    assert read_settings(tmp_path / "scratch")["tuned"] == ".../mine"
