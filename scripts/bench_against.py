"""What an update of `diffpo train` costs a CPU, beside the same update of another version of diffpo.

    python scripts/bench_against.py REVISION [--config configs/shapes-dpo.yaml] [--starts 3] [model.name=lora ...]

REVISION is a commit of this repository, whose files are laid out in a temporary folder, or a folder that holds another
version. Each version trains in a process of its own, on one thread, and makes one update when it is told to: the two
take turns, and who begins changes with each round, so that what else the machine does falls on both. Both start anew
several times, since where a process happens to lie in memory makes it a little faster or slower. An update is one turn
of the loop: reading rows, random draws, forward, backward, optimizer, log. Printed are its CPU seconds, of all threads
of the process, and of each round the ratio of this version's to the other one's: medians, with quartiles.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import runpy
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
WARMUP = 3
"""Updates before those that are measured."""
ALONE = ("train.eval_every=0", "train.sample_every=0", "train.checkpoint_every=1000000")
"""What lets updates stand alone."""


class Version:
    """A version of diffpo that trains in a process of its own, update by update."""

    def __init__(self, tree: Path, config: Path, output: Path, overrides: Sequence[str]):
        told, heard = os.pipe(), os.pipe()
        ends = (told[0], heard[1])
        command = [sys.executable, __file__, "--worker", *map(str, ends), str(config), f"train.output={output}"]
        environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        self._log = output.with_suffix(".log")
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*command, *ALONE, *overrides], cwd=tree, env=environment, pass_fds=ends, stdout=log, stderr=log
            )
        for end in ends:
            os.close(end)
        self._tell, self._hear = os.fdopen(told[1], "w", buffering=1), os.fdopen(heard[0])
        self._spent = self._wait()

    def update(self) -> tuple[float, float]:
        """Make one update, and return the CPU seconds that it took, in the program and in the kernel."""
        print("go", file=self._tell)
        before, self._spent = self._spent, self._wait()
        return self._spent[0] - before[0], self._spent[1] - before[1]

    def end(self) -> None:
        """Stop training, wherever it is."""
        self._process.kill()
        self._process.wait()

    def _wait(self) -> tuple[float, float]:
        line = self._hear.readline()
        if not line:
            raise SystemExit(f"the training has ended:\n{self._log.read_text()[-4000:]}")
        user, system = map(float, line.split())
        return user, system


def work(told: int, heard: int, arguments: Sequence[str]) -> None:
    """Train as the command does, but wait before each update to be asked for it, and tell the CPU seconds so far."""
    from diffpo.data.loader import PairLoader

    tell, hear, updates = os.fdopen(heard, "w", buffering=1), os.fdopen(told), PairLoader.updates

    def one_by_one(*given: Any, **named: Any) -> Iterator[Any]:
        batches = iter(updates(*given, **named))
        while True:
            spent = resource.getrusage(resource.RUSAGE_SELF)
            print(spent.ru_utime, spent.ru_stime, file=tell)
            if not hear.readline():
                return
            yield next(batches)

    PairLoader.updates = one_by_one
    sys.argv = ["diffpo", "train", *arguments]
    runpy.run_module("diffpo", run_name="__main__", alter_sys=True)


def laid_out(revision: str, folder: Path) -> Path:
    """The files of a version: those of a folder, or of a commit of this repository."""
    if Path(revision).is_dir():
        return Path(revision).resolve()
    files = subprocess.run(["git", "-C", HERE, "archive", revision], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(files)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def spread(values: Sequence[float]) -> str:
    """A median with its quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


Round = dict[str, tuple[float, float]]
"""CPU seconds of one update of each version, in the program and in the kernel."""


def take_turns(
    trees: dict[str, Path], config: Path, folder: Path, rounds: int, overrides: Sequence[str]
) -> list[Round]:
    """Start both versions, and let them make updates in turn."""
    steps = f"train.steps={2 * (rounds + WARMUP)}"
    versions = {name: Version(tree, config, folder / name, [steps, *overrides]) for name, tree in trees.items()}
    try:
        for _ in range(WARMUP):
            for version in versions.values():
                version.update()
        order = list(versions)
        return [{name: versions[name].update() for name in order[:: (-1) ** number]} for number in range(rounds)]
    finally:
        for version in versions.values():
            version.end()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="a commit, or a folder")
    parser.add_argument("overrides", nargs="*", help="such as train.batch=8; both versions must know them")
    parser.add_argument("--config", type=Path, default=HERE / "configs" / "shapes-dpo.yaml")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=12, help="updates of each version after each start")
    options = parser.parse_intermixed_args(arguments)
    rounds: list[Round] = []
    with tempfile.TemporaryDirectory() as name:
        trees = {"other": laid_out(options.revision, Path(name) / "files"), "this": HERE}
        for start in range(options.starts):
            folder = Path(name) / str(start)
            folder.mkdir()
            rounds += take_turns(trees, options.config.resolve(), folder, options.rounds, options.overrides)
    print("| CPU seconds of an update | other version | this version | this / other |\n|---|---|---|---|")
    for what, take in (("in all", sum), ("in the program", lambda x: x[0]), ("in the kernel", lambda x: x[1])):
        seconds = {which: [take(each[which]) for each in rounds] for which in trees}
        ratios = [this / other if other else 1.0 for this, other in zip(seconds["this"], seconds["other"], strict=True)]
        print(f"| {what} | {spread(seconds['other'])} | {spread(seconds['this'])} | {spread(ratios)} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    else:
        main()
