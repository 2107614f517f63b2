"""Run `diffpo` commands in forks of one process that has imported everything; started by `runs.launch`, and kept.

Each line that it reads names a file of jobs; it answers with a line when all of them have ended.

A job may have several processes, with the environment that torchrun gives them. A job may be killed in a given place:
a function of diffpo that is called when the run is there, and the number of the call. Nothing in diffpo knows of it.
Several terminals may run the same command at the same time.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from preload import preload

import diffpo.disk.files
import diffpo.disk.rows
import diffpo.generation.request
import diffpo.generation.work
import diffpo.scorers.scores
import diffpo.training.checkpoint
import diffpo.training.samples
import diffpo.training.train
import diffpo.training.update
from diffpo.__main__ import main


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(module: Any, name: str, number: int, instead: Callable[..., Any] = die) -> None:
    """Replace a module's function at its call number `number`, counted from 1."""
    original, calls = getattr(module, name), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return (instead if calls == number else original)(*args, **kwargs)

    setattr(module, name, counted)


def half_a_shard(path: Path, write: Callable[[Any], None]) -> None:
    with path.with_name(f".{path.name}.killed.unfinished").open("wb") as file:
        write(file)
        file.truncate(100)
    die()


def half_a_file(content: Any, path: Path) -> None:
    Path(path).write_bytes(b"\0" * 1000)
    die()


def half_a_checkpoint() -> None:
    """Die in the sixth update, while another thread is in the middle of the second checkpoint's second file."""

    def stuck(content: Any, path: Path) -> None:
        Path(path).write_bytes(b"\0" * 1000)
        signal.pause()

    at_call(diffpo.training.checkpoint, "save_file", 5, stuck)
    at_call(diffpo.training.update, "step_optimizer", 6)


def unrenamed_export() -> None:
    """Die when `final/` is written but does not yet have its name."""
    put = diffpo.disk.files._put

    def killed(new: Path, path: Path) -> None:
        if path.name == "final":
            die()
        put(new, path)

    diffpo.disk.files._put = killed


PLACES: dict[str, Callable[[], None]] = {
    "encoding": lambda: at_call(diffpo.disk.rows, "write_file", 2, half_a_shard),  # one file of rows, and now
    "step": lambda: at_call(diffpo.training.update, "step_optimizer", 4),
    "checkpoint": lambda: at_call(
        diffpo.training.checkpoint, "save_file", 5, half_a_file
    ),  # 3 files each: the 2nd of the 2nd
    "background": half_a_checkpoint,
    "pruning": lambda: at_call(diffpo.disk.files, "remove", 1),
    "export": unrenamed_export,
    "sampling": lambda: at_call(diffpo.generation.request, "sample_clips", 3),
    "naming": lambda: at_call(diffpo.generation.work, "_give_names", 2),
    "scoring": lambda: at_call(diffpo.scorers.scores, "read_media", 2),  # the second model's folder
}


STOPS: dict[str, tuple[Any, str, int]] = {
    "encoding": (diffpo.disk.files, "_begin", 7),  # two files of the run, of hashes, a recipe, one of rows, and now
    "step": (diffpo.training.update, "step_optimizer", 4),
    "sampling": (diffpo.training.samples.SampleGrids, "draw", 1),
    "checkpoint": (diffpo.training.checkpoint, "save_file", 5),
}
"""Where a signal may come that lets the run end by itself, as `PLACES` for kills."""


def signal_at(place: str, number: int) -> None:
    """Send this process a signal in a given place, and let it go on there."""
    module, name, call = STOPS[place]
    original = getattr(module, name)

    def signalled(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    at_call(module, name, call, signalled)


def in_forks(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job in forks of this process, and wait for them."""
    ranks, terminals = job.get("processes", 1), job.get("terminals", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / str(i) for i in range(ranks * terminals)]
        children = [os.fork() or in_child(job, i % ranks, ranks, port, outputs[i]) for i in range(ranks * terminals)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        text = "".join(output.read_text() for output in outputs)
        seen = outputs[0].with_suffix(".json")
        return {"code": codes[0] if len(set(codes)) == 1 else codes, "text": text} | (
            json.loads(seen.read_text()) if seen.exists() else {}
        )


def in_child(job: dict[str, Any], rank: int, ranks: int, port: int, output: Path) -> int:
    """Be one process of a job; never returns."""
    with output.open("wb") as file, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(job["env"])
    signal.alarm(job.get("seconds", 0))  # ends a process that waits for another one for ever
    if ranks > 1:  # what torchrun sets
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
        }
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        watch_shards(output.with_suffix(".json"))
    sys.argv, code = ["diffpo", *job["argv"]], 0
    try:
        if "kill" in job:
            PLACES[job["kill"]]()
        if "signal" in job and rank == ranks - 1:
            signal_at(*job["signal"])
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def watch_shards(file: Path) -> None:
    """Report how many parameters of policy and reference are sharded, and how much of them this process holds."""
    from torch.distributed.tensor import DTensor

    prepare = diffpo.training.train.prepare_learner

    def watched(*args: Any) -> Any:
        learner, seen = prepare(*args), {}
        references = [] if learner.reference is None else [learner.reference.denoiser.network]
        for name, networks in (("policy", [learner.policy.network]), ("reference", references)):
            held = [p for network in networks for p in network.parameters()]
            shards = [p for p in held if isinstance(p, DTensor)]
            here, whole = sum(p.to_local().numel() for p in shards), sum(p.numel() for p in shards)
            seen[name] = {"parameters": len(held), "shards": len(shards), "here": here, "whole": whole}
        file.write_text(json.dumps(seen))
        return learner

    diffpo.training.train.prepare_learner = watched


if __name__ == "__main__":
    preload()
    for line in sys.stdin:
        jobs_file = Path(line.rstrip("\n"))
        answers = [in_forks(job) for job in json.loads(jobs_file.read_text())]
        jobs_file.with_suffix(".done").write_text(json.dumps(answers))
        print(jobs_file, flush=True)
