"""What a run tells: a few lines at its start, `metrics.jsonl`, trackers by name, a bar in a terminal.

`metrics.jsonl` has one JSON object per line, each with its `step`; on resume it is cut back to the checkpoint's step,
so that it reads as if nothing had happened. Only `time/...` values differ between a run and its repetition.
"""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from diffpo.data.loader import PairLoader
from diffpo.data.plan import Schedule
from diffpo.disk.files import write_file, writing
from diffpo.disk.progress import SECONDS, stderr_console
from diffpo.disk.rows import cache_home
from diffpo.training.learner import Learner
from diffpo.training.reference import describe_draws

QUARTILES = 4


def describe_run(
    learner: Learner, plan: Schedule, loader: PairLoader, held_out: PairLoader | None, folder: Path, done: int
) -> list[str]:
    """Say in a few lines what this run is, of which an earlier start has done some updates."""
    config, accelerator, train = learner.config, learner.accelerator, learner.config.train
    usable = sum(map(len, loader.groups))
    judged = 0 if held_out is None else min(train.eval_pairs, sum(map(len, held_out.groups)))
    trained, total = (sum(p.numel() for p in some) for some in (learner.trained, learner.policy.network.parameters()))
    device = accelerator.device
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else device
    dropped = {
        "ties": loader.counts.ties if config.data.ties == "drop" else 0,
        "without a label": loader.counts.unlabelled,
        "without a prompt": loader.counts.promptless,
        "broken": len(loader.broken),
        "of sizes that fill no batch": plan.never_used,
    }
    lost = ", ".join(f"{number:,} {reason}" for reason, number in dropped.items() if number) or "none"
    cut = f"batch {train.batch} x accumulate {train.accumulate} x processes {accelerator.num_processes}"
    epochs = train.steps / plan.updates_per_epoch
    start = f"resumed from update {done}" if done else "new"
    lines = [
        ("run", f"{folder}: {start}, {train.steps:,} updates in all"),
        ("pairs", f"{usable - plan.never_used:,} used, {judged:,} held out to judge; dropped: {lost}"),
        ("update", f"{plan.effective:,} pairs ({cut}), {epochs:.3g} epochs in all"),
        ("model", f"{config.model.path}: {trained:,} of {total:,} parameters are trained"),
        ("device", f"{named}, {train.dtype}, mixed precision {train.mixed_precision}"),
    ]
    if config.data.reference_draws is not None:
        lines.append(("draws", describe_draws(config, config.data.reference_draws, plan, usable)))
    if config.data.encoded is not None:
        lines.append(("shards", f"{config.data.encoded}, {config.data.encoded_window} of a size are shuffled together"))
    elif config.data.cache:
        home = cache_home(config.data.cache_dir)
        size = sum(file.stat().st_size for file in home.rglob("*") if file.is_file())
        lines.append(("cache", f"{home}: {size / 2**20:,.1f} MiB"))
    return [f"{title:8}{text}" for title, text in lines]


def mean_metrics(names: list[str], rows: Tensor, count: Tensor) -> dict[str, float]:
    """Average logged values over the terms of an effective batch; without any, the loss is zero and nothing else told.

    `rows` `[n names]` are sums over the terms of each row, of which there are `count` `[n]`. `time` is the relative
    time, by whose quartile `rewards/accuracies` is averaged, too.
    """
    if not count.any():
        return {"loss": 0.0, "terms": 0}
    means = dict(zip(names, (rows.sum(0) / count.sum()).tolist(), strict=True))
    if "time" in means and "rewards/accuracies" in means:
        quartile = (rows[:, names.index("time")] * QUARTILES).long().clamp(0, QUARTILES - 1)
        for q in range(QUARTILES):
            terms = count[quartile == q].sum()
            if terms:
                sums = rows[quartile == q, names.index("rewards/accuracies")].sum()
                means[f"rewards/accuracies/t{q + 1}"] = (sums / terms).item()
    means.pop("time", None)
    return means


class RunLog:
    """The log of one run, from `start` updates to `stop`; silent on every process but the first.

    Where there is no terminal, it prints a line after `every` updates, and after `SECONDS`.
    """

    def __init__(self, accelerator: Any, folder: Path, start: int, stop: int, *, every: int):
        self._accelerator, self._main = accelerator, accelerator.is_main_process
        self._start, self._stop, self._every, self._name = start, stop, every, folder.name
        self._path, self._file = folder / "metrics.jsonl", None
        if self._main:
            lines = self._path.read_text().splitlines() if self._path.exists() else []
            write_file(self._path, "".join(f"{line}\n" for line in lines if _step(line) <= start))
            self._file = self._path.open("ab", buffering=0)  # nothing is left to write when it is closed
        self._console = stderr_console()
        title, status = TextColumn("[bold]{task.description}"), TextColumn("{task.fields[status]}")
        columns = (title, BarColumn(), MofNCompleteColumn(), status, TimeElapsedColumn(), TimeRemainingColumn())
        hidden = not (self._main and self._console.is_terminal)
        self._bar = Progress(*columns, console=self._console, disable=hidden)
        self._task = self._bar.add_task(self._name, total=stop, completed=start, status="")
        self._began = self._clock = self._shown = time.perf_counter()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        if self._file is not None:
            self._file.close()

    def advance(self, step: int, metrics: dict[str, float]) -> None:
        """Move the bar, or print a line where there is no terminal."""
        shown = {"loss": metrics.get("loss"), "acc": metrics.get("rewards/accuracies")}
        status = [f"{name} {value:.4f}" for name, value in shown.items() if value is not None]
        if pace := metrics.get("time/pairs_per_second"):
            status.append(f"{pace:.1f} pairs/s")
        self._bar.update(self._task, completed=step, status="  ".join(status))
        now = time.perf_counter()
        due = step % self._every == 0 or step == self._stop or now - self._shown >= SECONDS
        if due and not self._console.is_terminal:
            self._shown = now
            left = (now - self._began) / (step - self._start) * (self._stop - step)
            self.say(f"{self._name}: update {step} of {self._stop}, {', '.join([*status, f'{left:.0f} s left'])}")

    @contextmanager
    def aside(self, what: str) -> Iterator[None]:
        """Name work that is no update, such as sampling; its time does not count in the pace."""
        began = time.perf_counter()
        self._bar.update(self._task, description=f"{self._name}: {what}")
        if not self._console.is_terminal:
            self.say(f"{self._name}: {what}")
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            self._began, self._clock = self._began + spent, self._clock + spent
            self._bar.update(self._task, description=self._name)

    def timing(self, pairs: int) -> dict[str, float]:
        """Values that measure time and memory since the last call, without what was done aside."""
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        values = {"time/seconds": seconds, "time/pairs_per_second": pairs / seconds}
        if torch.cuda.is_available():
            values["time/peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return values

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Append a line and tell the trackers."""
        if self._file is not None:
            with writing(self._path):
                self._file.write(json.dumps({"step": step} | metrics).encode() + b"\n")
        self._accelerator.log(metrics, step=step)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._main:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def _step(line: str) -> float:
    """Step of a line of `metrics.jsonl`; infinity for one that a kill cut off."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
