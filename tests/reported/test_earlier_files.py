"""Nothing goes over an earlier file in silence."""

import pytest
from judged_fixtures import folders  # noqa: F401
from typer.testing import CliRunner

from diffpo.commands.app import app


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
