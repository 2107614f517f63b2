"""A run's folder: whose it is, what the run has written there, and what may change when it continues.

A folder belongs to a run if it holds `run.json`, the run's mark:

    wrote      the files and folders that the run wrote, as paths below its folder
    history    each time that the run went on with other settings: after which update, and the old and new values

`--fresh` removes what the mark lists and nothing else; without `--fresh` nothing is removed. A folder that holds
anything, but no mark, is refused before any work.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from diffpo.config.run import Config
from diffpo.disk.files import UNFINISHED, discard, sweep, write_file, write_json, writing
from diffpo.disk.lock import sole_writer
from diffpo.disk.plain import read_saved
from diffpo.errors import ConfigError, UserError
from diffpo.training.checkpoint import differences, flatten, is_checkpoint, newest, updates_done
from diffpo.training.processes import by_the_first

MARK = "run.json"
FORMAT = "diffpo run 1"
"""What the mark says that it is; it changes with the mark's meaning."""
ALWAYS = ("config.yaml", "metrics.jsonl")
"""What every run writes."""
FOLDERS = ("checkpoints", "samples", "final")
"""Folders of a run. Each may be a link to a folder on another disk."""
EFFECTIVE = "pairs per update"
"""The line of `config.yaml` that no setting says alone: batch x accumulate x processes."""

FREE = {
    *("train.batch", "train.accumulate"),  # as long as their product with the processes stays
    *("train.log_every", "train.trackers", "train.project", "train.output"),
    *("train.sample_every", "train.eval_every", "train.eval_pairs"),
    *("train.checkpoint_every", "train.checkpoint_minutes", "train.keep_last", "train.async_checkpoints"),
    *("sample.prompts", "sample.seeds", "sample.steps", "sample.guidance", "sample.batch"),
    *("sample.size", "sample.negative_prompt"),
    *("data.cache", "data.cache_dir", "data.workers", "data.encoded"),
}
"""Settings that do not change what is learned."""
CHANGEABLE = FREE | {
    *("train.steps", "train.learning_rate", "train.schedule", "train.warmup_steps"),
    *("train.mixed_precision", "train.tf32", "model.dtype"),
    *("train.compile", "train.channels_last", "train.fused", "model.gradient_checkpointing", "model.recomputed_share"),
}
"""Settings that may change when a run goes on (`docs/training.md` lists them)."""
OWN_ORDER = " (pairs come in another order from encoded shards than from a table)"
"""Why `data.encoded` may name another place, but neither come nor go."""


def check_devices(config: Config, device: torch.device) -> None:
    """Refuse what this device cannot do, before anything is loaded: float16 training on a CPU."""
    chosen = {"train.mixed_precision": config.train.mixed_precision, "model.dtype": config.model.dtype}
    half = [f"{key}={value}" for key, value in chosen.items() if value in ("fp16", "float16")]
    if half and device.type == "cpu":
        raise UserError(
            f"{' and '.join(half)}, but this machine trains on its CPU, which has no fast float16. "
            "Use train.mixed_precision=no (or bf16) and leave model.dtype out"
        )


@contextmanager
def run_folder(config: Config, accelerator: Accelerator, *, fresh: bool) -> Iterator[Path]:
    """Hold the run's folder against other commands, and make it this run's; see `claim`."""
    if not (config.train.output or "").strip():
        raise UserError("train.output is empty: give the folder that the run writes to, such as train.output=runs/mine")
    folder = Path(config.train.output or "")
    effective = config.train.batch * config.train.accumulate * accelerator.num_processes

    def hold() -> None:
        stack.enter_context(sole_writer(folder.resolve(), "diffpo train"))
        claim(folder, config.to_dict() | {EFFECTIVE: effective}, fresh=fresh)

    with ExitStack() as stack:
        by_the_first(accelerator, hold)
        yield folder


def claim(folder: Path, tree: dict[str, Any], *, fresh: bool) -> None:
    """Make a folder this run's, or check that the run in it may go on with these settings.

    `tree` is the resolved configuration, with the pairs per update. `fresh` removes what the run in the folder wrote. A
    folder that is no run's, cannot be written, or holds a run with settings that may not change is refused.
    """
    check_places(folder)
    mark = read_mark(folder)
    if mark is None:
        held = sorted(path.name for path in folder.iterdir() if not path.name.endswith(UNFINISHED))
        if held:
            more = f" and {len(held) - 5} more" if len(held) > 5 else ""
            raise UserError(
                f"{folder} holds {', '.join(held[:5])}{more}, but no run of diffpo (no {MARK} that says so), so "
                "nothing is written or removed there. Give another folder with train.output=..."
            )
    elif fresh:
        _clear(folder, mark["wrote"])
    if mark is None or fresh:
        mark = {"format": FORMAT, "wrote": ALWAYS, "history": []}
    elif _has_learned(folder) and (changed := _allowed_changes(folder, tree)):
        mark["history"].append({"update": updates_done(newest(folder / "checkpoints")), "changed": changed})
    folder.mkdir(exist_ok=True)
    write_json(folder / MARK, mark)
    write_file(folder / "config.yaml", yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def note(folder: Path, *paths: Path) -> None:
    """Write down which files or folders of its own the run is about to write; only the first process calls this.

    What is gone is struck off, but for a checkpoint that may be on its way.
    """
    mark = read_mark(folder)
    assert mark is not None, "a run writes to a folder that it has claimed"
    names = {path.relative_to(folder).as_posix() for path in paths}
    if not names <= set(mark["wrote"]):
        done = updates_done(newest(folder / "checkpoints"))
        there = {name for name in mark["wrote"] if name in ALWAYS or os.path.lexists(folder / name)}
        there |= {name for name in mark["wrote"] if is_checkpoint(Path(name)) and updates_done(Path(name)) > done}
        write_json(folder / MARK, mark | {"wrote": sorted(there | names)})


def read_mark(folder: Path) -> dict[str, Any] | None:
    """Return what the mark says; None where there is none, or a file of that name that is no mark of ours."""
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
        ours = mark["format"] == FORMAT and isinstance(mark["history"], list)
        inside = not any(Path(name).is_absolute() or ".." in Path(name).parts for name in mark["wrote"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return mark if ours and inside else None


def check_places(folder: Path) -> None:
    """Refuse, before any work, places that cannot be written."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for place in (folder, *(folder / name for name in FOLDERS)):
        if place.is_symlink() and not place.exists():
            target = place.readlink()
            raise UserError(f"{place} is a link to {target}, which is not there: make it, or remove the link.")
        if place.exists() and not place.is_dir():
            advice = "move it away, or choose another place"
            raise UserError(f"{place} is a file, and a run needs a folder there: {advice}.")
        for probed in {place, place.resolve().parent} if place.is_symlink() else {place}:
            if probed.exists():
                with writing(probed), tempfile.TemporaryFile(dir=probed):
                    pass


def changes(folder: Path, tree: dict[str, Any]) -> dict[str, list[Any]]:
    """Find the settings that are not as a run's `config.yaml` says, each with its old and its new value.

    Settings that did not exist when the run began have their default there: what nobody could set has not changed.
    """
    file = folder / "config.yaml"
    try:
        old, new = flatten(_completed(read_saved(file))), flatten(tree)
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{file} cannot be read ({error}), so nobody knows which run this is. Bring it back, give another folder "
            "with train.output=..., or begin anew in this one with --fresh"
        ) from error
    return differences(old, new)


def _completed(tree: dict[str, Any]) -> dict[str, Any]:
    """A saved tree with the settings that came later; as it stands where it no longer makes a config."""
    kept = {key: value for key, value in tree.items() if key != EFFECTIVE}
    try:
        return tree | Config.build(kept).to_dict()
    except ConfigError:
        return tree


def _allowed_changes(folder: Path, tree: dict[str, Any]) -> dict[str, list[Any]]:
    changed = changes(folder, tree)
    fixed = [
        f"  {key}: {was!r} there, {now!r} now{OWN_ORDER if key in CHANGEABLE else ''}\n"
        for key, (was, now) in changed.items()
        if key not in CHANGEABLE or (key == "data.encoded" and None in (was, now))
    ]
    if fixed:
        raise UserError(
            f"{folder} holds a run with another config:\n{''.join(fixed)}"
            "Set these as they were to go on, give another folder with train.output=..., or begin anew in this one "
            "with --fresh"
        )
    done, steps = updates_done(newest(folder / "checkpoints")), tree["train"]["steps"]
    if done > steps:
        raise UserError(
            f"{folder} has already done more than train.steps={steps} updates: give at least train.steps={done} to go "
            "on, or begin anew with --fresh"
        )
    return changed


def _has_learned(folder: Path) -> bool:
    """Whether there is something to lose: a checkpoint, an export, or updates in the log."""
    log = folder / "metrics.jsonl"
    exported = (folder / "final").is_dir() and any((folder / "final").iterdir())
    return newest(folder / "checkpoints") is not None or exported or (log.is_file() and log.stat().st_size > 0)


def _clear(folder: Path, wrote: list[str]) -> None:
    """Remove what the run wrote; its folders go as a whole where nobody else put anything into them."""
    for place in FOLDERS:
        sweep(folder / place)
        if not (folder / place).is_symlink() and (folder / place).is_dir() and not others(folder, place):
            discard(folder / place)
    for name in wrote:
        discard(folder / name)
    for parent in sorted({parent for each in wrote for parent in Path(each).parents[:-1]}, reverse=True):
        with suppress(OSError):  # a link, or not empty
            (folder / parent).rmdir()


def others(folder: Path, place: str) -> list[Path]:
    """List the files in one of the run's folders that the run did not write."""
    mark = read_mark(folder)
    ours = {folder / name for name in mark["wrote"]} if mark is not None else set()
    files = [path for path in (folder / place).rglob("*") if not path.is_dir()]
    return [path for path in files if ours.isdisjoint((path, *path.parents))]
