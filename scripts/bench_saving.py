"""What a checkpoint costs the loop: a run that waits for it, and one that writes it in the background.

    python scripts/bench_saving.py [--updates 12] [--every 3] [--rounds 5] [--folder FOLDER] [model.name=lora ...]

Updates of the shapes world (or of what the overrides say), full tuning with AdamW, are made and timed: without
checkpoints, with ones that are waited for, and with ones in the background. The three alternate; each ends when its
last checkpoint is whole. Printed are the seconds of an update without any, what a checkpoint adds to the loop in each
round, and how long the loop stood still for one, all as medians with their range; as JSON with --json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffpo.config.run import Config, build
from diffpo.training.learner import Learner, prepare_learner
from diffpo.training.processes import make_accelerator
from diffpo.training.run import claim
from diffpo.training.saving import Saver
from diffpo.training.train import prepare_data
from diffpo.training.update import update

WAYS = ("none", "waiting", "background")


def configure(folder: Path, overrides: Sequence[str], updates: int) -> Config:
    """The run that is timed; overrides are of `model`, `data` and `train`."""
    tree: dict[str, Any] = {
        "model": {"name": "full", "path": "shapes:base"},
        "method": {"name": "dpo"},
        "data": {"name": "pickapic", "path": "shapes:pairs", "resolution": 64, "limit": 64},
        "train": {"steps": updates, "batch": 4, "learning_rate": 1e-6, "output": str(folder)},
    }
    for override in overrides:
        key, _, value = override.partition("=")
        block, _, field = key.partition(".")
        tree[block][field] = value
    return build(tree)


def measure(learner: Learner, updates: list[Any], way: str, every: int, folder: Path) -> tuple[float, list[float]]:
    """Seconds that the updates took with their checkpoints, and how long the loop stood still for each of these."""
    config, still = learner.config, list[float]()
    learner.config = replace(config, train=replace(config.train, async_checkpoints=way == "background"))
    claim(folder, config.to_dict(), fresh=False)
    began = time.perf_counter()
    with Saver(learner, folder, {}) as saver:
        for done, batches in enumerate(updates, 1):
            update(learner, batches, 0, done)
            if way != "none" and done % every == 0:
                paused = time.perf_counter()
                saver.save(done)
                still.append(time.perf_counter() - paused)
        saver.finish()
    learner.config = config
    return time.perf_counter() - began, still


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure all rounds."""
    config = configure(folder / "run", options.overrides, options.updates)
    accelerator = make_accelerator(config)
    plan, loader, _, _ = prepare_data(config, accelerator)
    learner, updates = prepare_learner(config, accelerator), list(loader.updates(plan, 0, options.updates))
    measure(learner, updates[:1], "waiting", 1, folder / "warm")
    size = sum(file.stat().st_size for file in (folder / "warm" / "checkpoints").rglob("*") if file.is_file())
    shutil.rmtree(folder / "warm")  # a disk may hold few checkpoints of large networks
    rounds: list[dict[str, Any]] = []
    for number in range(options.rounds):
        order = WAYS[number % 3 :] + WAYS[: number % 3]
        took = {}
        for way in order:
            took[way] = measure(learner, updates, way, options.every, folder / way)
            shutil.rmtree(folder / way)
        rounds.append({way: {"seconds": seconds, "still": still} for way, (seconds, still) in took.items()})
    written = options.updates // options.every
    added = {way: [(each[way]["seconds"] - each["none"]["seconds"]) / written for each in rounds] for way in WAYS[1:]}
    still = {way: [x for each in rounds for x in each[way]["still"]] for way in WAYS[1:]}
    plain = [each["none"]["seconds"] / options.updates for each in rounds]
    return {"mebibytes": size / 2**20, "update": plain, "added": added, "still": still}


def spread(values: Sequence[float]) -> str:
    """A median with its range, in milliseconds."""
    low, middle, high = (1000 * x for x in (min(values), statistics.median(values), max(values)))
    return f"{middle:,.0f} ms ({low:,.0f} to {high:,.0f})"


def describe(found: dict[str, Any]) -> list[str]:
    """What was measured, as a table in markdown."""
    lines = [
        f"a checkpoint of {found['mebibytes']:.0f} MiB; an update without any takes {spread(found['update'])}",
        "",
        "| | adds to the loop, per checkpoint | the loop stands still |",
        "|---|---|---|",
    ]
    names = {"waiting": "the run waits", "background": "in the background"}
    return [
        *lines,
        *(f"| {names[way]} | {spread(found['added'][way])} | {spread(found['still'][way])} |" for way in WAYS[1:]),
    ]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="such as train.batch=8")
    parser.add_argument("--updates", type=int, default=12)
    parser.add_argument("--every", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where checkpoints go; a new one by default")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        found = run(options, folder)
    finally:
        shutil.rmtree(folder)
    print("\n".join(describe(found)))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
