"""Tiny runs: their configurations, processes of their own for them, and comparison of what they leave behind."""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).parent.parent
LAUNCHER = ROOT / "tests" / "launch.py"


@dataclass(frozen=True)
class World:
    """A folder with tiny pipelines and a pair table."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, *families: str, rows: int = 12) -> World:
        import tiny

        for family in families or ("sd15",):
            tiny.save_pipeline(family, folder / family)
        tiny.save_pairs(folder / "pairs", rows)
        return cls(folder)

    def tree(self, output: str, changes: Mapping[str, Any] | None = None, family: str = "sd15") -> dict[str, Any]:
        """A configuration: a LoRA, 3 updates of 4 pairs; `changes` by dotted key. A table is named from its folder."""
        tree: dict[str, Any] = {
            "model": {"name": "lora", "path": str(self.folder / family)},
            "method": {"name": "dpo"},
            "data": {"name": "pairs", "path": "pairs.jsonl", "resolution": 16},
            "train": {"steps": 3, "batch": 4, "learning_rate": 1e-3, "output": str(self.folder / output)},
            "sample": {"steps": 2},
        }
        for key, value in (changes or {}).items():
            block, _, field = key.partition(".")
            tree[block][field] = value
        tree["data"]["path"] = str(self.folder / "pairs" / tree["data"]["path"])
        if tree["model"]["name"] == "full":
            tree["model"] = {k: v for k, v in tree["model"].items() if k not in ("rank", "alpha")}
        return tree

    def write(self, output: str, changes: Mapping[str, Any] | None = None, family: str = "sd15") -> Path:
        """Write a configuration; returns the file."""
        file = self.folder / f"{output}.yaml"
        file.write_text(yaml.safe_dump(self.tree(output, changes, family)))
        return file

    def train(
        self, output: str, changes: Mapping[str, Any] | None = None, family: str = "sd15", **options: Any
    ) -> Path:
        """Train in this process; returns the run's folder."""
        from diffpo.config.run import build
        from diffpo.training.train import train

        return train(build(self.tree(output, changes, family)), **options)


def forget_accelerator() -> None:
    """Let the next `Accelerator` of this process choose its precision anew."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)


def metrics(run: Path, times: bool = False) -> list[dict[str, Any]]:
    """Lines of a run's `metrics.jsonl`, without what measures time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if times or not k.startswith("time/")} for line in lines]


def checkpoints(run: Path) -> list[str]:
    """Names in a run's `checkpoints/`, unfinished ones included."""
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def contents(run: Path) -> dict[str, Any]:
    """All that must not depend on an interruption: tensors, plain state, metrics, pictures."""
    files = sorted(p for folder in ("checkpoints", "final", "samples") for p in (run / folder).rglob("*"))
    held: dict[str, Any] = {"metrics": metrics(run)}
    for file in files:
        name = str(file.relative_to(run))
        if file.suffix == ".safetensors":
            held[name] = load_file(file)
        elif file.name == "state.json":
            held[name] = json.loads(file.read_text())
        elif file.suffix == ".png":
            held[name] = file.read_bytes()
    return held


def assert_same(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """Assert that two `contents` are equal, tensors bit for bit."""
    assert list(a) == list(b)
    for name, value in a.items():
        if isinstance(value, dict) and any(isinstance(x, Tensor) for x in value.values()):
            assert value.keys() == b[name].keys(), name
            differing = [k for k, x in value.items() if x.dtype != b[name][k].dtype or not x.equal(b[name][k])]
            assert not differing, f"{name}: {differing}"
        else:
            assert value == b[name], name


def weights(run: Path) -> dict[str, Tensor]:
    """What a run exported."""
    return {k: v for file in sorted((run / "final").rglob("*.safetensors")) for k, v in load_file(file).items()}


def difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The largest difference of two sets of weights."""
    assert a.keys() == b.keys() and a
    return max((x.double() - b[k].double()).abs().max().item() for k, x in a.items())


def environment(**more: str) -> dict[str, str]:
    """The environment of a process of its own: one thread, no accelerate settings of the caller."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "FSDP_"))}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | more


def command(*arguments: str | Path, timeout: float = 900, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` in a process of its own."""
    line = [sys.executable, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=timeout, env=environment(**env), cwd=ROOT)


def launch(jobs: Sequence[Mapping[str, Any]], file: Path) -> list[dict[str, Any]]:
    """Run `diffpo` commands, one after the other, in forks of one process that has imported everything.

    Args:
        jobs: Each with `argv`, the arguments of `diffpo`; perhaps `kill`, where SIGKILL hits (see `launch.py`);
            `signal`, a place and a signal that comes there (`launch.STOPS`), to the last process; `processes`, how many
            run it together; `terminals`, how many times the same command is started at once; `env`, more
            environment; `seconds` that it may take.
        file: Where the list of jobs goes; the answers stand beside it.

    Returns:
        For each job its exit `code` (negative: a signal; a list where processes differ) and what it printed, `text`;
        with several processes also what is sharded.
    """
    file.write_text(json.dumps([{**job, "env": environment(**job.get("env", {}))} for job in jobs]))
    launcher = _launcher()
    print(file, file=launcher.stdin, flush=True)
    ready, _, _ = select.select([launcher.stdout], [], [], 900)
    if not ready or launcher.stdout.readline() != f"{file}\n":
        launcher.kill()
        _launcher.cache_clear()
        raise AssertionError(f"{file} was not done: it hung, or its launcher ended")
    return json.loads(file.with_suffix(".done").read_text())


@functools.cache
def _launcher() -> subprocess.Popen[str]:
    """The process that forks: one for all tests of this process, since it takes seconds to import everything."""
    line, how = [sys.executable, LAUNCHER], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = subprocess.Popen(line, env=environment(), cwd=ROOT, **how)
    atexit.register(started.communicate)  # it ends when there is no more to read
    return started
