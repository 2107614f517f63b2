"""The campaign: a short one of each kind finds nothing, what is wrong would be seen, and a second call goes on."""

from __future__ import annotations

import importlib
import random
import sys

import pytest
from runs import command
from trials.forks import Draw, Trial, try_it

KINDS = ("kills", "races", "configs", "tables", "media", "attacks")


@pytest.mark.slow
def test_a_short_campaign_finds_nothing(tmp_path):
    arguments = ("scripts/campaign.py", "all", "--seed", "1", "--out", tmp_path, "--n", "1")
    done = command(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in KINDS:
        assert f"{kind}: 1 trials" in done.stdout
    before = {kind: (tmp_path / f"{kind}-1.jsonl").read_text() for kind in KINDS}
    again = command(*arguments)
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert {kind: (tmp_path / f"{kind}-1.jsonl").read_text() for kind in KINDS} == before


@pytest.mark.slow
def test_what_is_wrong_is_seen(tmp_path):
    """Ends that are none of ours, commands that hang, refusals that are slow, what a check finds; kills that hit.

    What a command writes to relative paths lies in the trial's own folder.
    """
    script = f"""
import sys; sys.path[:0] = {sys.path!r}
import time
from pathlib import Path
import trials.forks as forks
from trials.forks import Kill, Trial, try_it
folder = Path({str(tmp_path)!r})
forks.REFUSAL = 0.2
def told(run, **more):
    forks.command = lambda arguments: run
    found = try_it(Trial("x", "x", [["x"]], **more), folder, 0.0)
    return found.faults, found.kills
def breaks():
    raise KeyError("x")
def sleeps():
    time.sleep(60)
    return 0
def computes():
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    return 2
def writes():
    for name in ("a", "~", "../../b"):
        with Path(name).expanduser().joinpath(".", *(["c"] if name == "~" else [])).open("a") as file:
            file.write(".")
    return 0
print(told(breaks), told(sleeps, seconds=0.2), told(lambda: 0, check=lambda: ["mis-paired"]))
print(told(lambda: 2), told(lambda: 1), told(computes))
print(told(writes, kills=(Kill(write=1), Kill(write=2), Kill(write=4), Kill(after=60.0))))
print(told(sleeps, seconds=0.2, kills=(Kill(after=0.1),)))
print(*sorted(Path().iterdir()))
"""
    (tmp_path / "elsewhere").mkdir()
    done = command("-c", f"import os; os.chdir({str(tmp_path / 'elsewhere')!r})\n{script}")
    assert done.stdout.splitlines() == [
        "(['traceback'], 0) (['hang'], 0) (['mis-paired'], 0)",
        "([], 0) (['traceback'], 0) (['hang'], 0)",
        "([], 2)",
        "(['hang', 'differs'], 1)",
        "",
    ], done.stderr
    home = tmp_path / "home"
    texts = {name: (tmp_path / name).read_text() for name in ("home/here/a", "home/c", "b")}
    assert home.is_dir() and texts == {"home/here/a": "....", "home/c": "...", "b": "..."}


@pytest.mark.parametrize("kind", ["configs", "tables", "media", "attacks"])
def test_a_seed_says_what_is_tried(kind, tmp_path):
    make = importlib.import_module(f"trials.{kind}").trial
    names = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        draw = Draw(3, random.Random("seed"), tmp_path / name, tmp_path / "world")
        names.append(make(draw).what)
    assert names[0] == names[1]
    assert Trial("x", "x", []).seconds > 0 and callable(try_it)
