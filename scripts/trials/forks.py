"""Run commands of diffpo in forks of a process that has imported everything, kill them, and measure them."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from preload import preload

REFUSAL = 5.0
"""Seconds of computing after which a refusal comes too late."""
WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
"""What Python tells audit hooks about changes of a disk, besides files that are opened for writing."""


@dataclass(frozen=True)
class Draw:
    """What a trial is drawn from."""

    number: int
    """Which trial it is, from 0."""
    rng: random.Random
    folder: Path
    """Empty, and the trial's own."""
    world: Path
    """What all trials of a campaign share, made when it is first needed."""


@dataclass(frozen=True)
class Kill:
    """A moment at which a command is killed."""

    after: float = math.inf
    """Seconds from its start."""
    write: int = 0
    """Or which change of the disk it does not live to make, counted from 1."""

    def __str__(self) -> str:
        return f"before write {self.write}" if self.write else f"after {self.after:.2f} s"


@dataclass(frozen=True)
class Trial:
    """Commands, and what has to hold after them."""

    what: str
    """In words, for the record."""
    group: str
    """What is tried, for the table: trials of a group are counted together."""
    commands: list[list[str]]
    """Arguments of `diffpo`, one after the other; a command that is refused ends the trial."""
    check: Callable[[], list[str]] = lambda: []
    """Runs in a fork of its own, also after a refusal; names the faults that it finds."""
    seconds: float = 60.0
    """After which a command hangs."""
    kills: tuple[Kill, ...] = ()
    """When the first command is killed, to be started again."""
    processes: int = 1
    """How many share each command, as torchrun starts them."""
    env: Mapping[str, str] = field(default_factory=dict)
    """More environment."""
    late: tuple[float, ...] = ()
    """Two terminals: command i is started so many seconds after the first one, not when the one before it has ended."""


@dataclass
class Done:
    """What a trial did."""

    what: str
    group: str
    code: int
    seconds: float
    """The longest command."""
    computed: float
    """The same in seconds of computing, which other programs of the machine do not make longer."""
    peak: float
    """MiB of memory beyond what a process has that does nothing."""
    kills: int
    """How many kills came before the end."""
    text: str
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Ended:
    """What a fork did."""

    code: int
    seconds: float
    computed: float
    peak: float
    text: str


def fork(function: Callable[[], int], output: Path, seconds: float) -> Ended:
    """Call a function in a fork; after so many seconds it is killed, with code -9."""
    return forks([function], [output], seconds)[0]


def forks(
    functions: Sequence[Callable[[], int]], outputs: Sequence[Path], seconds: float, alone: float = math.inf
) -> list[Ended]:
    """Call functions in forks, at the same time.

    Args:
        functions: Each returns an exit code.
        outputs: Where each prints to.
        seconds: After which all are killed, with code -9.
        alone: Seconds that the others get once one has failed, as torchrun does it.
    """
    start = time.monotonic()
    children = [os.fork() or _be_child(*each) for each in zip(functions, outputs, strict=True)]
    ended: dict[int, Ended] = {}
    until = start + seconds
    while len(ended) < len(children):
        for child, output in zip(children, outputs, strict=True):
            late = time.monotonic() > until
            if child in ended:
                continue
            if late:
                os.kill(child, signal.SIGKILL)
            pid, status, used = os.wait4(child, 0 if late else os.WNOHANG)
            if pid:
                code, took = os.waitstatus_to_exitcode(status), time.monotonic() - start
                text = output.read_text(errors="replace") if output.exists() else ""
                ended[child] = Ended(code, took, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, text)
                if code:
                    until = min(until, time.monotonic() + alone)
        time.sleep(0.005)
    return [ended[child] for child in children]


def _be_child(function: Callable[[], int], output: Path) -> int:
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


def run(
    arguments: list[str], folder: Path, seconds: float, processes: int, kill: Kill, env: Mapping[str, str]
) -> Ended:
    """Run a command on some processes in a folder of its own, `folder/home/here`; a kill ends the first one of them.

    How many changes of the disk the first process made stands in `folder/writes` afterwards.
    """
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}

    def rank(number: int) -> Callable[[], int]:
        def begin() -> int:
            os.environ.update(env)
            if processes > 1:
                os.environ.update(shared | {"RANK": str(number), "LOCAL_RANK": str(number)})
            _go_home(folder)
            if number:
                return command(arguments)()
            return _count_writes(command(arguments), folder / "writes", kill.write)

        return begin

    outputs = [folder / f"said-{i}.txt" for i in range(processes)]
    all_ended = forks([rank(i) for i in range(processes)], outputs, min(seconds, kill.after), alone=0.2)
    return max(all_ended, key=lambda ended: (ended.code == -signal.SIGKILL, ended.code != 0, ended.computed))


def _go_home(folder: Path) -> None:
    """Make relative paths, and those that begin with ~, the trial's own; `../..` is its folder."""
    here = folder / "home" / "here"
    here.mkdir(parents=True, exist_ok=True)
    os.environ["HOME"] = str(here.parent)
    os.chdir(here)


def _count_writes(function: Callable[[], int], file: Path, last: int) -> int:
    """Call a function and write down how often it changed the disk; it is killed before change number `last`."""
    count, process = 0, os.getpid()

    def seen(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        opened = event == "open" and isinstance(flags := arguments[2], int) and flags & (os.O_WRONLY | os.O_RDWR)
        if (opened or event in WRITES) and os.getpid() == process:
            count += 1
            if count == last:
                os.kill(process, signal.SIGKILL)

    sys.addaudithook(seen)
    code = function()
    made, last = count, 0
    file.write_text(str(made))
    return code


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def peak_of_nothing() -> float:
    """MiB that a fork has which does nothing, once everything is imported."""
    preload()
    return fork(lambda: 0, Path(os.devnull), 60).peak


def try_it(trial: Trial, folder: Path, nothing: float) -> Done:
    """Run a trial's commands and its check."""
    faults, hits = [], 0
    for kill in trial.kills:
        killed = run(trial.commands[0], folder, trial.seconds, trial.processes, kill, trial.env)
        hits += killed.code == -signal.SIGKILL
        if killed.code not in (0, 2, -signal.SIGKILL):
            faults.append("traceback")
    all_ended = _together(trial, folder) if trial.late else _one_by_one(trial, folder)
    faults += [fault for ended in all_ended for fault in _faults(ended)]
    ended = max(all_ended, key=lambda ended: ended.code) if trial.kills else all_ended[-1]
    if trial.kills and ended.code != 0:
        faults.append("differs")
    checked = fork(_checking(trial.check, folder / "found.json"), folder / "checked.txt", max(60, trial.seconds))
    faults += json.loads((folder / "found.json").read_text()) if checked.code == 0 else ["traceback"]
    return Done(
        what=trial.what,
        group=trial.group,
        code=ended.code,
        seconds=max(each.seconds for each in all_ended),
        computed=max(each.computed for each in all_ended),
        peak=max(each.peak for each in all_ended) - nothing,
        kills=hits,
        text="\n".join(each.text for each in all_ended)[-2000:] + checked.text[-2000:],
        faults=faults,
    )


def _one_by_one(trial: Trial, folder: Path) -> list[Ended]:
    all_ended = []
    for arguments in trial.commands:
        all_ended.append(run(arguments, folder, trial.seconds, trial.processes, Kill(), trial.env))
        if all_ended[-1].code != 0:
            break
    return all_ended


def _together(trial: Trial, folder: Path) -> list[Ended]:
    """Run each command in a terminal of its own."""

    def later(arguments: list[str], seconds: float) -> Callable[[], int]:
        def begin() -> int:
            _go_home(folder)
            time.sleep(seconds)
            return command(arguments)()

        return begin

    waiting = [later(*each) for each in zip(trial.commands, trial.late, strict=True)]
    return forks(waiting, [folder / f"said-{i}.txt" for i in range(len(waiting))], trial.seconds)


def _faults(ended: Ended) -> list[str]:
    if ended.code == -signal.SIGKILL or (ended.code == 2 and ended.computed > REFUSAL):
        return ["hang"]
    bug = ended.code not in (0, 2) or "Traceback" in ended.text or "looks like a bug" in ended.text
    return ["traceback"] if bug else []


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
