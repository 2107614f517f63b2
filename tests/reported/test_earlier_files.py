"""Nothing goes over an earlier file in silence."""

import pytest
from judged_fixtures import folders  # noqa: F401
from typer.testing import CliRunner

from diffpo.commands.app import app
from diffpo.errors import UserError


@pytest.mark.parametrize("command", ["compare", "report", "grid"])
def test_a_command_says_what_it_replaced(tmp_path, monkeypatch, folders, command):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    outs = {"compare": ["c.json", "c.csv"], "report": ["r.html"], "grid": ["g.png", "g.json"]}[command]
    words = [command, *map(str, folders), *(f"--out={out}" for out in outs if out != "g.json")]
    first = CliRunner().invoke(app, words)
    assert first.exit_code == 0 and "replaced" not in first.output, first.output
    assert f"wrote {', '.join(outs)}\n" in first.output
    (tmp_path / outs[-1]).unlink()
    (tmp_path / outs[-1]).write_text("somebody's notes")
    again = CliRunner().invoke(app, words)
    assert f"wrote {', '.join(f'{out} (replaced an earlier file)' for out in outs)}\n" in again.output


@pytest.mark.parametrize("command", ["compare", "report", "grid"])
@pytest.mark.parametrize(
    ("out", "message"), [("folder.json", "is a folder"), ("file/c.json", "is a file, where a folder")]
)
def test_places_that_cannot_be_written_are_refused_at_once(tmp_path, monkeypatch, command, out, message):
    """Before anything is read: the media folders are not there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").write_text("somebody's notes")
    done = CliRunner().invoke(app, [command, "nowhere", "nowhere2", "--out", out])
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception) or "there is no folder file" in str(done.exception)
    assert (tmp_path / "file").read_text() == "somebody's notes"
