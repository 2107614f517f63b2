"""Checkpoints: safetensors plus JSON, keyed by parameter name, the same files for one device, DDP and FSDP2.

A folder with a final name is always complete; the newest one is found by listing. Nothing is pickled.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from diffpo.disk.files import UNFINISHED, remove, sweep, whole_folder

NAME = "step-{:06d}"
PATTERN = re.compile(r"step-(\d+)")
OPTIONS = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
RESTORE = StateDictOptions(full_state_dict=True, ignore_frozen_params=True, strict=False)
SEPARATOR = "|"


def trained_weights(network: nn.Module) -> dict[str, Tensor]:
    """Collect the trained parameters, whole and on the CPU, by name.

    Every process must call this; all but the first get nothing.
    """
    weights = get_model_state_dict(network, options=OPTIONS)
    constant = {name.removeprefix("module.") for name, _ in network.named_buffers()}  # such as a table of positions
    return {name: _own(x) for name, x in weights.items() if name not in constant}


def optimizer_state(network: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Collect the optimizer's tensors (`parameter|name`, or `parameter|group|name`) and its plain values.

    Every process must call this; all but the first get nothing.
    """
    whole = get_optimizer_state_dict(network, optimizer, options=OPTIONS)
    flat = _flatten(whole.get("state", {}))  # bitsandbytes keeps its 8-bit tensors in a group of their own
    tensors = {key: _own(value) for key, value in flat.items() if isinstance(value, Tensor)}
    plain = {key: value for key, value in flat.items() if not isinstance(value, Tensor)}
    return tensors, {"state": plain, "param_groups": whole.get("param_groups", [])}


def restore(
    network: nn.Module, optimizer: Optimizer, weights: dict[str, Tensor], tensors: dict[str, Tensor], plain: Any
) -> None:
    """Put back what `trained_weights` and `optimizer_state` collected; every process must call this."""
    state: dict[str, Any] = {}
    for key, value in (tensors | plain["state"]).items():
        *groups, name = key.split(SEPARATOR)
        level = state
        for group in groups:
            level = level.setdefault(group, {})
        level[name] = value
    set_model_state_dict(network, weights, options=RESTORE)
    whole = {"state": state, "param_groups": plain["param_groups"]}
    set_optimizer_state_dict(network, optimizer, whole, options=RESTORE)  # pyright: ignore[reportArgumentType]


def newest(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in `folder`, or None."""
    found = {int(m[1]): path for path in folder.glob("step-*") if (m := PATTERN.fullmatch(path.name))}
    return found[max(found)] if found else None


def save(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], values: dict[str, Any], keep: int) -> Path:
    """Write one checkpoint whole or not at all, then remove all but the newest `keep`.

    Args:
        folder: The run's `checkpoints/`.
        step: Updates done.
        tensors: Contents by file name (`weights` becomes `weights.safetensors`).
        values: Contents of `state.json`.
        keep: Checkpoints that stay.

    Raises:
        UserError: The disk is full; the checkpoints before this one are untouched.
    """
    path = folder / NAME.format(step)
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    with whole_folder(path) as temporary:
        for name, content in tensors.items():
            save_file(content, temporary / f"{name}.safetensors")
        (temporary / "state.json").write_text(json.dumps(values))
    complete = sorted(p for p in folder.iterdir() if PATTERN.fullmatch(p.name))
    for old in complete[:-keep]:
        remove(old.rename(old.with_name(f".{old.name}{UNFINISHED}")))  # never half a folder under a final name
    return path


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read what `save` wrote."""
    tensors = {file.stem: load_file(file) for file in path.glob("*.safetensors")}
    return tensors, json.loads((path / "state.json").read_text())


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        key = prefix + name
        flat |= _flatten(value, key + SEPARATOR) if isinstance(value, dict) else {key: value}
    return flat


def _own(x: Tensor) -> Tensor:
    return x.detach().cpu().contiguous().clone()  # safetensors refuses tensors that share memory
