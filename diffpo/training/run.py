"""A run's folder: who owns it, and what may change when a run continues."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from diffpo.disk.files import write_file
from diffpo.errors import UserError
from diffpo.training.checkpoint import newest

if TYPE_CHECKING:
    from accelerate import Accelerator

    from diffpo.config.run import Config

FILES = ("config.yaml", "metrics.jsonl", "samples", "checkpoints", "final", "report.html")
"""What a run writes, and `--fresh` removes."""
FREE = {
    *("train.batch", "train.accumulate"),  # as long as their product with the processes stays
    *("train.log_every", "train.trackers", "train.project", "train.output"),
    *("train.sample_every", "train.eval_every", "train.eval_pairs"),
    *("train.checkpoint_every", "train.keep_last"),
    *("sample.prompts", "sample.seeds", "sample.steps", "sample.guidance", "sample.batch"),
}
"""Settings that do not change what is learned."""
STEADY = ("constant", "constant_with_warmup")
"""Schedules that do not look at the number of steps, which may then grow."""


def check_devices(config: Config, device: torch.device) -> None:
    """Refuse what this device cannot do, before anything is loaded.

    Raises:
        UserError: float16 training on a CPU.
    """
    half = [
        f"{key}={value}"
        for key, value in (
            ("train.mixed_precision", config.train.mixed_precision),
            ("model.dtype", config.model.dtype),
        )
        if value in ("fp16", "float16")
    ]
    if half and device.type == "cpu":
        raise UserError(
            f"{' and '.join(half)}, but this machine trains on its CPU, which has no fast float16. "
            "Use train.mixed_precision=no (or bf16) and leave model.dtype out"
        )


def claim_folder(config: Config, accelerator: Accelerator, fresh: bool) -> Path:
    """Make the run's folder, or check that the run in it is this one.

    Raises:
        UserError: The folder holds another run's config; the message names the differences.
    """
    assert config.train.output is not None, "config.load_config names the folder"
    folder = Path(config.train.output)
    wanted = _flat(config.to_dict())
    wanted["pairs per update"] = config.train.batch * config.train.accumulate * accelerator.num_processes
    file = folder / "config.yaml"
    if fresh and folder.exists() and not file.exists() and any(folder.iterdir()):
        raise UserError(
            f"{folder} holds files but no run of diffpo: --fresh removes nothing there. Give another folder"
        )
    if file.exists() and not fresh:
        changed = _changes(_flat(yaml.safe_load(file.read_text())), wanted)
        done = newest(folder / "checkpoints")
        if done is not None:
            _check_same(changed, done, wanted["train.steps"], folder)
        elif changed and _has_learned(folder):
            raise _another_run(changed, folder)
        fresh = bool(changed) and done is None  # a start that failed before it learned anything: nothing is lost
    accelerator.wait_for_everyone()  # nobody reads what the first process is about to write
    if accelerator.is_main_process:
        if fresh:
            _clear(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tree = config.to_dict() | {"pairs per update": wanted["pairs per update"]}
        write_file(file, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    accelerator.wait_for_everyone()
    return folder


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """List the settings that decide what is learned and are not the same."""
    free = FREE | ({"train.steps"} if new["train.schedule"] in STEADY else set())
    changed = [k for k in sorted(old.keys() | new.keys()) if k not in free and old.get(k) != new.get(k)]
    return [f"{k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in changed]


def _has_learned(folder: Path) -> bool:
    """Whether a run without checkpoints left something: an export, or updates in its log."""
    log = folder / "metrics.jsonl"
    return (folder / "final").exists() or (log.exists() and log.stat().st_size > 0)


def _another_run(changed: list[str], folder: Path) -> UserError:
    lines = "\n".join(f"  {line}" for line in changed)
    return UserError(
        f"{folder} holds a run with another config:\n{lines}\n"
        "Give another folder with train.output=..., or begin anew in this one with --fresh"
    )


def _check_same(changed: list[str], done: Path, steps: int, folder: Path) -> None:
    if changed:
        raise _another_run(changed, folder)
    if int(done.name.removeprefix("step-")) > steps:
        raise UserError(f"{folder} has already done more than train.steps={steps} updates ({done.name})")


def _clear(folder: Path) -> None:
    for name in FILES:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
