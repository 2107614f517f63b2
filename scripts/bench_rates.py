"""How `bench_feed.py` measures: rates, how busy cores and device are kept, and what is printed of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from diffpo.disk.processes import cores
from diffpo.generation.work import FITTED

Found = dict[str, Any]


@contextmanager
def measured(count: int) -> Iterator[Found]:
    """Time a block, and the processor's time of this process and of those that work for it."""
    found: Found = {"images": count}
    start, before = time.perf_counter(), busy()
    yield found
    seconds, cpu = time.perf_counter() - start, busy() - before
    found |= {"seconds": seconds, "cpu": cpu, "per second": count / seconds, "of the cores": cpu / seconds / cores()}


def busy() -> float:
    """Processor seconds of this process, of those below it, and of those below that have ended and were waited for."""
    this = psutil.Process()
    return sum(sum(each.cpu_times()[:4]) for each in (this, *this.children(recursive=True)))


def steady(files: Sequence[Path], count: int) -> Found:
    """The rate between the first and the last file that was written; they hold equally many images."""
    span = (written(files[-1]) - written(files[0])) / 1e9 if len(files) > 3 else 0.0
    return {"steady": count * (len(files) - 1) / len(files) / span if span else None}


def with_share(found: Found) -> Found:
    """Add how busy the device was kept."""
    return found | {"of the device": (found["steady"] or found["per second"]) / found["device alone"]}


def written(file: Path) -> int:
    """When a file was written."""
    return file.stat().st_mtime_ns


def show(results: dict[str, dict[str, Found]]) -> None:
    """Print what was found."""
    for what, cases in results.items():
        first = next(iter(cases.values()))
        for name, found in cases.items():
            rate, base = (each.get("steady") or each["per second"] for each in (found, first))
            more = {key: found[key] for key in ("of the device", "of the cores") if found.get(key) is not None}
            shares = "".join(f", {value:.0%} {key}" for key, value in more.items())
            told = "".join(f", {key} {found[key]}" for key in ("dtype", "batch", FITTED) if found.get(key))
            print(
                f"{what:9} {name:26} {found['images']:5} images {found['seconds']:6.1f} s {rate:8.1f} per second "
                f"({rate / base:.1f}x){shares}{told}"
            )
