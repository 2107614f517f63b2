"""What a run tells: `metrics.jsonl`, trackers by name, a progress bar.

`metrics.jsonl` has one JSON object per line, each with its `step`; on resume it is cut back to the checkpoint's step,
so that it reads as if nothing had happened. Only `time/...` values differ between a run and its repetition.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from diffpo.disk.files import write_file

QUARTILES = 4


def mean_metrics(names: list[str], rows: Tensor) -> dict[str, float]:
    """Average logged values over the rows of an effective batch.

    Args:
        names: One per column; `time` is the relative time, and `rewards/accuracies` is also averaged by its quartile.
        rows: `[n names]` float64.
    """
    means = dict(zip(names, rows.mean(0).tolist(), strict=True))
    if "time" in means and "rewards/accuracies" in means:
        quartile = (rows[:, names.index("time")] * QUARTILES).long().clamp(0, QUARTILES - 1)
        for q in range(QUARTILES):
            chosen = rows[quartile == q, names.index("rewards/accuracies")]
            if len(chosen):
                means[f"rewards/accuracies/t{q + 1}"] = chosen.mean().item()
    means.pop("time", None)
    return means


class RunLog:
    """The log of one run; silent on every process but the first."""

    def __init__(self, accelerator: Any, folder: Path, start: int, stop: int, description: str):
        """Cut `metrics.jsonl` back to `start` updates and open it.

        Args:
            accelerator: Knows whether this is the first process, and the trackers.
            folder: The run's folder.
            start: Updates done before.
            stop: Updates to do in all.
            description: What stands before the progress bar.
        """
        self._accelerator = accelerator
        self._main = accelerator.is_main_process
        self._file = None
        if self._main:
            path = folder / "metrics.jsonl"
            lines = path.read_text().splitlines() if path.exists() else []
            kept = [line for line in lines if _step(line) is not None and (_step(line) or 0) <= start]
            write_file(path, "".join(f"{line}\n" for line in kept))
            self._file = path.open("a")
        columns = ("[bold]{task.description}", "{task.fields[status]}")
        self._bar = Progress(
            TextColumn(columns[0]),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(columns[1]),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            disable=not self._main,
        )
        self._task = self._bar.add_task(description, total=stop, completed=start, status="")
        self._clock = time.perf_counter()

    def __enter__(self) -> RunLog:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bar as it is and close the file."""
        self._bar.stop()
        if self._file is not None:
            self._file.close()

    def advance(self, step: int, metrics: dict[str, float]) -> None:
        """Move the bar."""
        shown = {"loss": metrics.get("loss"), "acc": metrics.get("rewards/accuracies")}
        status = "  ".join(f"{name} {value:.4f}" for name, value in shown.items() if value is not None)
        pace = metrics.get("time/pairs_per_second")
        self._bar.update(self._task, completed=step, status=status + (f"  {pace:.1f} pairs/s" if pace else ""))

    def timing(self, pairs: int) -> dict[str, float]:
        """Values that measure time and memory since the last call."""
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        values = {"time/seconds": seconds, "time/pairs_per_second": pairs / seconds}
        if torch.cuda.is_available():
            values["time/peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return values

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Append a line and tell the trackers."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step} | metrics) + "\n")
            self._file.flush()
        self._accelerator.log(metrics, step=step)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._main:
            self._bar.console.print(text, highlight=False)


def _step(line: str) -> int | None:
    """Step of a line of `metrics.jsonl`; None for one that a kill cut off."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
