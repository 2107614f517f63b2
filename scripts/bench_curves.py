"""Draw what encoding, reading ahead and starting cost, as curves: docs/speed.json and docs/speed.png.

    python scripts/bench_curves.py --json docs/speed.json --picture docs/speed.png     # some 15 minutes
    python scripts/bench_curves.py ahead --json docs/speed.json --picture docs/speed.png     # this part anew

    encode   images per second, and how busy the cores are kept, by images that are encoded together and by processes
             that decode (0: threads): JPEG files of 512 pixels a side, a small VAE that takes 64
    ahead    memory, and time that the loop waits, by the micro-batches of an update: 8 pairs of the sizes of Stable
             Diffusion 1.5 at 512 pixels, each micro-batch "trained" by a pause; beside it reading whole updates ahead
    start    time and memory by the rows of a table (`bench_startup.py`)

Every point of `encode` is the median of --rounds rounds, in which all points are measured one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import bench_startup

PARTS = ("encode", "ahead", "start")
BATCHES, WORKERS = (1, 4, 16, 64), (0, 1, 2)
"""Images that are encoded together, and processes that decode."""
LARGER = 8
"""How much larger pictures are than what is encoded."""
MICRO_STEPS, WAYS = (1, 4, 16, 64, 256), ("micro-batches", "whole updates")
PAIRS, PAUSE, UPDATES = 8, 0.02, 3
"""Pairs in a micro-batch, seconds that one is trained for, and updates that are read."""
SIZES = {"latent": (4, 1, 64, 64), "text": (77, 768)}
"""Of Stable Diffusion 1.5 at 512 pixels."""
ALONG = {
    "encode": ("batch", "images encoded together", "images per second", "busy share of the cores' time"),
    "ahead": ("micro steps", "micro-batches per update", "MiB at the peak", "seconds that the loop waits"),
    "start": ("rows", "rows of the table", "seconds", "MiB beyond torch's own"),
}
"""What lies along the axes: its name in the JSON, and in words."""
Points = list[dict[str, Any]]


def encode(home: Path, options: argparse.Namespace) -> Points:
    """Encode the same pictures in every way; the median round of each."""
    import bench_feed

    settings = {"tiny": True, "images": options.images, "steps": 1, "only": "", "device": "cpu"}
    bench = bench_feed.Bench(home, argparse.Namespace(**settings), enlarged=LARGER)
    found: dict[tuple[int, int], Points] = {}
    for number, (workers, batch) in product(range(options.rounds), product(WORKERS, BATCHES)):
        _, made = bench.encoded(options.images, "float32", encode_batch=batch, workers=workers)
        found.setdefault((workers, batch), []).append({"workers": workers, "batch": batch} | made)
        print(f"round {number}, {workers} processes, {batch:2} together: {made['per second']:.1f} images/s", flush=True)
    return [sorted(rounds, key=lambda each: each["per second"])[len(rounds) // 2] for rounds in found.values()]


def ahead(home: Path, options: argparse.Namespace) -> Points:
    """Read updates of each size in both ways, each in a process of its own."""
    (home / "pairs").mkdir()
    bench_startup.build(home / "pairs", max(MICRO_STEPS) * PAIRS, **SIZES)
    return [measured(f"{home}/pairs", way, str(steps)) for steps, way in product(MICRO_STEPS, WAYS)]


def measured(*case: str) -> dict[str, Any]:
    """What another process finds out about one case of `ahead`."""
    command = [sys.executable, __file__, "--ahead", *case]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    print(" ".join(case[1:]), f"{found['peak'] / 2**20:.0f} MiB, waits {found['waiting']:.3f} s", flush=True)
    return found


def read(folder: Path, way: str, steps: int) -> dict[str, Any]:
    """Read a few updates, and pause for each micro-batch as if it were learned from."""
    from diffpo.data.plan import Schedule
    from diffpo.disk.ahead import ahead as read_ahead

    loader = bench_startup.open_loader(folder)
    plan = Schedule(0, loader.groups, micro_steps=steps, micro_batch=PAIRS)

    def whole(update: int) -> list[Any]:
        return [loader.batch(rows, plan.position(update)[0]) for rows in plan.indices(update, 0)]

    def ways() -> Iterator[list[Any]]:
        yield from read_ahead(whole, range(UPDATES), depth=1) if way == WAYS[1] else loader.updates(plan, 0, UPDATES)

    found: dict[str, Any] = {"way": way, "micro steps": steps}
    loader.batch(plan.indices(0, 0)[0], 0)
    firsts, waits = [], []
    with bench_startup.watched(found):
        updates, began = ways(), time.perf_counter()
        for update in updates:
            paused = 0.0
            for number, _ in enumerate(update):
                at = time.perf_counter()
                firsts += [at - began] * (not number)
                time.sleep(PAUSE)
                paused += time.perf_counter() - at
            waits.append(time.perf_counter() - began - paused)
            began = time.perf_counter()
    return found | {"first": firsts[0], "waiting": statistics.median(waits[1:])}


def start(home: Path, options: argparse.Namespace) -> Points:
    """See `bench_startup`."""
    return list(bench_startup.curve(options.rows, home))


MEASURED = {"encode": encode, "ahead": ahead, "start": start}


def draw(results: dict[str, Any], file: Path) -> None:
    """Draw both curves of each part, with what is asked for."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(12, 6.6), layout="constrained")
    for column, part in zip(axes.T, PARTS, strict=True):
        key, x, *labels = ALONG[part]
        numbers = sorted({each[key] for each in results[part]["points"]})
        DRAWN[part](results[part]["points"], *column)
        for place, label in zip(column, labels, strict=True):
            place.set(xscale="log", xlabel=x, ylabel=label)
            place.set_xticks(numbers, [f"{number:,}" for number in numbers])
            place.minorticks_off()
            place.grid(alpha=0.3)
            place.legend(fontsize=8)
    figure.savefig(file, dpi=110)


def draw_encode(points: Points, rate: Any, share: Any) -> None:
    """By images that are encoded together; one by one, with threads, is the way before."""
    for workers in WORKERS:
        own = [each for each in points if each["workers"] == workers]
        for place, name in ((rate, "per second"), (share, "of the cores")):
            label = f"processes that decode: {workers}" if workers else "threads decode"
            place.plot([each["batch"] for each in own], [each[name] for each in own], "o-", label=label)
    (before,) = (each for each in points if each["batch"] == 1 and not each["workers"])
    for place, name in ((rate, "per second"), (share, "of the cores")):
        place.axhline(before[name], color="black", linestyle="--", label="one by one, the way before")
    share.axhline(0.8, color="grey", linestyle=":", label="asked: 80 %")
    share.set_ylim(0, 1)
    rate.set_ylim(0, 1.4 * max(each["per second"] for each in points))
    rate.set_title("encoding")


def draw_ahead(points: Points, memory: Any, waiting: Any) -> None:
    """By micro-batches per update."""
    for way, colour in zip(WAYS, ("C0", "C1"), strict=True):
        own = [each for each in points if each["way"] == way]
        steps = [each["micro steps"] for each in own]
        memory.plot(steps, [each["peak"] / 2**20 for each in own], "o-", color=colour, label=f"{way} ahead")
        for name, style, told in (("waiting", "o-", "a later update"), ("first", "s:", "before the first one begins")):
            waiting.plot(steps, [each[name] for each in own], style, color=colour, label=f"{way} ahead: {told}")
    memory.set(yscale="log", title="reading ahead")
    waiting.set(yscale="log", ylim=(1e-4, 1e3))


def draw_start(points: Points, seconds: Any, memory: Any) -> None:
    """By rows."""
    rows = [each["rows"] for each in points]
    seconds.plot(rows, [each["wall"] for each in points], "o-", label="by the clock")
    seconds.plot(rows, [each["cpu"] for each in points], "s--", label="processor")
    seconds.axhline(30, color="grey", linestyle=":", label="asked: below 30 s for a million")
    memory.plot(rows, [each["peak"] / 2**20 for each in points], "o-", label="at the peak")
    memory.axhline(1024, color="grey", linestyle=":", label="asked: below 1 GiB for a million")
    seconds.set(yscale="log", title="start of a training")
    memory.set_yscale("log")


DRAWN = {"encode": draw_encode, "ahead": draw_ahead, "start": draw_start}


def main(arguments: list[str] | None = None) -> int:
    """Measure the parts that the command line names, and draw all that the file has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=(*PARTS, []), default=[], help="all by default")
    parser.add_argument("--rounds", type=int, default=3, help="of encoding")
    parser.add_argument("--images", type=int, default=512, help="to encode")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="of the start")
    parser.add_argument("--json", type=Path, metavar="OUT", required=True)
    parser.add_argument("--picture", type=Path, metavar="OUT", help="is drawn if OUT.json has all parts")
    parser.add_argument("--ahead", nargs=3, help=argparse.SUPPRESS)
    if arguments is None and sys.argv[1:2] == ["--ahead"]:
        print(json.dumps(read(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))))
        return 0
    options = parser.parse_args(arguments)
    results: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    for part in options.parts or PARTS:
        with tempfile.TemporaryDirectory() as home:
            os.environ["DIFFPO_CACHE"] = f"{home}/cache"
            results[part] = {"machine": machine(), "points": MEASURED[part](Path(home), options)}
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.picture:
        draw(results, options.picture)
    return 0


def machine() -> dict[str, Any]:
    """What the points were measured on."""
    import torch
    from bench_machine import describe

    from diffpo.disk.processes import cores

    return describe(torch.device("cpu")) | {"cores": cores(), "load when it began": os.getloadavg()[0]}


if __name__ == "__main__":
    sys.exit(main())
