"""What is published names no place of this machine: no home folder, no user, no host."""

import getpass
import json
import socket
from pathlib import Path

import pytest
import yaml
from judged_fixtures import folders  # noqa: F401
from typer.testing import CliRunner

from diffpo.commands.app import app
from diffpo.disk.published import published

HOME = "/home/alice"


@pytest.fixture
def of_alice(monkeypatch, tmp_path):
    """Alice works in a folder of her home."""
    monkeypatch.setattr(Path, "home", lambda: Path(HOME))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"{HOME}/models/my sd 15", ".../my sd 15"),
        ("~/models/sd15/", ".../sd15"),
        (HOME, "..."),
        ("/home/bob", "..."),
        ("/", "..."),
        ("C:\\Users\\alice\\sd15", ".../sd15"),
        ("owner/model", "owner/model"),
        ("runs/sd15", "runs/sd15"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("1 / 2 of a w/ l/ pair", "1 / 2 of a w/ l/ pair"),
        (f"pickscore,path={HOME}/ps,scale=cosine", "pickscore,path=.../ps,scale=cosine"),
        (f"data:\n  path: {HOME}/my pairs\n  split: train\n", "data:\n  path: .../my pairs\n  split: train\n"),
        (f"- {HOME}/a\n- '{HOME}/b c'\n", "- .../a\n- '.../b c'\n"),
        (f"paths: [{HOME}/a, {HOME}/b]", "paths: [.../a, .../b]"),
        (json.dumps({"weights": f"{HOME}/w.pt", "of": 3}), json.dumps({"weights": ".../w.pt", "of": 3})),
    ],
)
def test_absolute_paths_are_shortened(of_alice, text, shown):
    assert published(text) == shown
    assert published({"a": [text, 3, None]}) == {"a": [shown, 3, None]}


def test_what_lies_below_the_working_folder_is_relative_to_it(of_alice, monkeypatch):
    assert published(f"{of_alice}/runs/sft/final") == "runs/sft/final"
    monkeypatch.chdir("/")
    assert published(f"{HOME}/models/sd15") == ".../sd15", "below /, but that would name the user"


def test_reports_and_comparisons_name_no_place(of_alice, folders, tmp_path):  # noqa: F811
    """Settings, provenance and the run's configuration hold paths; what is written of them does not."""
    names = [HOME, "alice", getpass.getuser(), socket.gethostname(), str(tmp_path)]
    media = []
    for folder in folders:
        copy = tmp_path / folder.name
        copy.mkdir()
        for file in folder.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        settings = json.loads((copy / "settings.json").read_text())
        settings |= {"model": f"{HOME}/models/sd15", "tuned": f"{HOME}/runs/x", "prompts": f"{HOME}/my prompts.txt"}
        (copy / "settings.json").write_text(json.dumps(settings | {"prompts_hash": "abc"}))
        media.append(str(copy))
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"path": f"{HOME}/pairs"}, "train": {"output": str(run)}}))
    for command in (
        ["compare", *media, "--out", "c.json", "--out", "c.csv", "--out", "c.tex"],
        ["report", *media, "--run", str(run)],
        ["grid", *media],
    ):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
    for file in ("c.json", "c.csv", "c.tex", "report.html", "grid.json"):
        text = (tmp_path / file).read_text()
        text = text.replace("&#34;", '"').replace("/r", "")
        assert not [name for name in names if len(name) > 4 and name in text], file
    assert ".../sd15" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "c.json").read_text())["prompt_set"] == ".../my prompts.txt, hash abc"
