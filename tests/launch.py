"""Run `diffpo` commands in processes that share one import of everything; started by `runs.launch`.

Alone, each job gets a fork of this process, which may be killed at a given place. Under torchrun, each job runs in this
process, as one of several.

A place is a function of diffpo that is called when the run is there, and the number of the call: nothing in diffpo
knows of it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffpo.checkpoint
import diffpo.data.cache
import diffpo.train  # noqa: F401  # all the rest
from diffpo.__main__ import main


def die(*_: Any) -> None:
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
    with path.with_name(f".{path.name}.killed").open("wb") as file:
        write(file)
        file.truncate(100)
    die()


def half_a_file(content: Any, path: Path) -> None:
    Path(path).write_bytes(b"\0" * 1000)
    die()


def unrenamed_export() -> None:
    """Die when `final/` is written but does not yet have its name."""
    sync = diffpo.checkpoint._sync

    def synced(path: Path) -> None:
        sync(path)
        if path.name == ".tmp-final":
            die()

    diffpo.checkpoint._sync = synced


PLACES: dict[str, Callable[[], None]] = {
    "encoding": lambda: at_call(diffpo.data.cache, "write_whole", 3, half_a_shard),  # key.json, one shard, and now
    "step": lambda: at_call(diffpo.train, "step_optimizer", 4),
    "checkpoint": lambda: at_call(diffpo.checkpoint, "save_file", 5, half_a_file),  # 3 files each: the 2nd of the 2nd
    "pruning": lambda: at_call(diffpo.checkpoint.shutil, "rmtree", 4),  # each save clears its .tmp first
    "export": unrenamed_export,
}


def run(argv: list[str]) -> int:
    sys.argv = ["diffpo", *argv]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def forked(job: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            if "kill" in job:
                PLACES[job["kill"]]()
            code = run(job["argv"])
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return {"code": os.waitstatus_to_exitcode(status), "text": output.read().decode()}


def beside_others(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job on all processes; report what is sharded, if anything is."""
    from torch.distributed.tensor import DTensor

    from diffpo import train

    seen: dict[str, Any] = {}
    prepare = train.prepare_learner

    def noticed(*args: Any) -> Any:
        learner = prepare(*args)
        references = [] if learner.reference is None else [learner.reference.denoiser.network]
        for name, networks in (("policy", [learner.policy.network]), ("reference", references)):
            held = [p for network in networks for p in network.parameters()]
            shards = [p for p in held if isinstance(p, DTensor)]
            local = sum(p.to_local().numel() for p in shards)
            seen[name] = {"parameters": len(held), "shards": len(shards), "local": local}
            seen[name]["whole"] = sum(p.numel() for p in shards)
        return learner

    train.prepare_learner = noticed
    try:
        return {"code": run(job["argv"]), "text": "", **seen}
    finally:
        train.prepare_learner = prepare


if __name__ == "__main__":
    jobs_file = Path(sys.argv[1])
    do = beside_others if "RANK" in os.environ else forked
    answers = [do(job) for job in json.loads(jobs_file.read_text())]
    if os.environ.get("RANK", "0") == "0":
        jobs_file.with_suffix(".done").write_text(json.dumps(answers))
