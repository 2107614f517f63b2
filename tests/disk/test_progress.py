"""Progress without a terminal."""

import io

from rich.console import Console

from diffpo.disk import progress as module
from diffpo.disk.progress import progress, track


def test_without_a_terminal_there_is_a_line_now_and_then(monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    out = io.StringIO()
    with progress("Encoding", 12, console=Console(file=out)) as advance:
        for _ in range(12):
            advance(1)
    lines = out.getvalue().splitlines()
    assert lines == [
        "Encoding: 3 of 12, 0.1 per second, 90 s left",
        "Encoding: 6 of 12, 0.1 per second, 60 s left",
        "Encoding: 9 of 12, 0.1 per second, 30 s left",
        "Encoding: 12 of 12, 0.1 per second, 0 s left",
    ]


def test_a_silent_process_says_nothing(monkeypatch, capsys):
    monkeypatch.setattr(module, "SECONDS", 0.0)
    assert list(track([1, 2], "Encoding", 2, shown=False)) == [1, 2]
    assert capsys.readouterr() == ("", "")
    assert list(track([1, 2], "Encoding", 2)) == [1, 2]
    assert "Encoding: 2 of 2" in capsys.readouterr().err


def test_a_terminal_gets_a_bar():
    out = io.StringIO()
    with progress("Encoding", 2, console=Console(file=out, force_terminal=True, width=100)) as advance:
        advance(2)
    assert "Encoding" in out.getvalue() and "2/2" in out.getvalue()
