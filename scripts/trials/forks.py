"""Run commands of diffpo in forks of a process that has imported everything, and measure them."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Trial:
    """Commands, and what has to hold after them."""

    what: str
    """In words, for the record."""
    commands: list[list[str]]
    """Arguments of `diffpo`, one after the other; a command that is refused ends the trial."""
    check: Callable[[], list[str]] = lambda: []
    """Runs in a fork of its own, also after a refusal; names the faults that it finds."""
    seconds: float = 60.0
    """After which a command hangs."""
    kills: tuple[float, ...] = ()
    """Seconds after which the first command is killed and started again."""


@dataclass
class Done:
    """What a trial did."""

    what: str
    code: int
    seconds: float
    peak: float
    """MiB of memory beyond what a process has that does nothing."""
    text: str
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Ended:
    """What a fork did."""

    code: int
    seconds: float
    peak: float
    text: str


def fork(function: Callable[[], int], output: Path, seconds: float) -> Ended:
    """Call a function in a fork; after so many seconds it is killed, with code -9."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_child(function, output)
    while True:
        pid, status, used = os.wait4(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() - start > seconds:
            os.kill(child, signal.SIGKILL)
            _, status, used = os.wait4(child, 0)
            break
        time.sleep(0.005)
    text = output.read_text(errors="replace") if output.exists() else ""
    return Ended(os.waitstatus_to_exitcode(status), time.monotonic() - start, used.ru_maxrss / 1024, text)


def _be_child(function: Callable[[], int], output: Path) -> None:
    """Do the work of a fork; never returns."""
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = 70
    try:
        code = function()
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def command(arguments: list[str]) -> Callable[[], int]:
    """A function that runs a command of diffpo and returns its exit code."""

    def run() -> int:
        from diffpo.__main__ import main

        sys.argv = ["diffpo", *arguments]
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run


def peak_of_nothing() -> float:
    """MiB that a fork has which does nothing, once everything is imported."""
    import diffpo.commands.demo
    import diffpo.commands.evaluate
    import diffpo.commands.geneval
    import diffpo.curate.build
    import diffpo.curate.imports.run
    import diffpo.curate.inspect
    import diffpo.training.train  # noqa: F401

    return fork(lambda: 0, Path(os.devnull), 60).peak


def try_it(trial: Trial, folder: Path, nothing: float) -> Done:
    """Run a trial's commands and its check."""
    seconds, peak, faults = 0.0, 0.0, []
    ended = Ended(0, 0.0, 0.0, "")
    for after in trial.kills:
        ended = fork(command(trial.commands[0]), folder / "killed.txt", after)
        if ended.code not in (0, 2, -9):
            faults.append("traceback")
    for arguments in trial.commands:
        ended = fork(command(arguments), folder / "said.txt", trial.seconds)
        seconds, peak = max(seconds, ended.seconds), max(peak, ended.peak - nothing)
        if ended.code == -9:
            faults.append("hang")
        elif ended.code not in (0, 2) or "Traceback" in ended.text or "looks like a bug" in ended.text:
            faults.append("traceback")
        if ended.code != 0:
            break
    if trial.kills and ended.code != 0:
        faults.append("differs")
    checked = fork(_checking(trial.check, folder / "found.json"), folder / "checked.txt", trial.seconds)
    if checked.code == 0:
        faults += json.loads((folder / "found.json").read_text())
    else:
        faults.append("traceback")
        return Done(trial.what, ended.code, seconds, peak, checked.text[-2000:], faults)
    return Done(trial.what, ended.code, seconds, peak, ended.text[-2000:] + checked.text, faults)


def _checking(check: Callable[[], list[str]], file: Path) -> Callable[[], int]:
    def run() -> int:
        file.write_text(json.dumps(check()))
        return 0

    return run


def once(place: Path, make: Callable[[Path], None]) -> Path:
    """Make something in a fork, the first time that it is asked for: trials share it."""
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        new = place.with_name(f".{place.name}.new")

        def run() -> int:
            make(new)
            return 0

        ended = fork(run, place.parent / f"{place.name}.txt", 600)
        assert ended.code == 0, ended.text
        new.rename(place)
    return place
