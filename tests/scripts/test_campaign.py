"""The campaign: a short one of each kind finds nothing, what is wrong would be seen, and a second call goes on."""

from __future__ import annotations

import random
import sys

import pytest
from runs import command
from trials.forks import Trial, try_it

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "number"), [("kills", 2), ("configs", 5), ("tables", 5), ("media", 4), ("attacks", 5)]
)
def test_a_short_campaign_finds_nothing(kind, number, tmp_path):
    arguments = ("scripts/campaign.py", kind, "--seed", "1", "--out", tmp_path)
    done = command(*arguments, "--n", str(number))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{kind}: {number} trials")
    before = (tmp_path / f"{kind}-1.jsonl").read_text()
    again = command(*arguments, "--n", str(number))
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert (tmp_path / f"{kind}-1.jsonl").read_text() == before


def test_what_is_wrong_is_seen(tmp_path):
    """Ends that are none of ours, commands that hang, and what a check finds."""
    script = f"""
import sys; sys.path[:0] = {sys.path!r}
import time
from pathlib import Path
import trials.forks as forks
from trials.forks import Trial, try_it
folder = Path({str(tmp_path)!r})
def told(run, **more):
    forks.command = lambda arguments: run
    return try_it(Trial("x", [["x"]], **more), folder, 0.0).faults
def breaks():
    raise KeyError("x")
def sleeps():
    time.sleep(60)
    return 0
print(told(breaks), told(sleeps, seconds=0.2), told(lambda: 0, check=lambda: ["mis-paired"]))
print(told(lambda: 2), told(lambda: 1))
"""
    done = command("-c", script)
    assert done.stdout.splitlines() == ["['traceback'] ['hang'] ['mis-paired']", "[] ['traceback']"], done.stderr


@pytest.mark.parametrize("kind", ["configs", "tables", "media", "attacks"])
def test_a_seed_says_what_is_tried(kind, tmp_path):
    import importlib

    make = importlib.import_module(f"trials.{kind}").trial
    world = tmp_path / "world"
    names = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        if kind == "attacks":
            (tmp_path / name / "x").mkdir()
        names.append(make(random.Random("seed"), tmp_path / name / ("x" if kind == "attacks" else ""), world).what)
    assert names[0] == names[1]
    assert Trial("x", []).seconds > 0 and callable(try_it)
