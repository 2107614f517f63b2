"""Checkpoints: safetensors plus JSON, keyed by parameter name, the same files for one device, DDP and FSDP2.

A folder with a final name was written whole; the newest one is found by listing. `state.json` lists every tensor with
its dtype and shape, and what is read is checked against that list. Nothing is pickled.
"""

import itertools
import json
import re
import shlex
from collections.abc import Mapping
from concurrent.futures import CancelledError
from pathlib import Path
from threading import Event
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from diffpo.disk.files import discard, sweep, whole_folder
from diffpo.errors import UserError

NAME = "step-{:06d}"
PATTERN = re.compile(r"step-(\d+)")
RESTORE = StateDictOptions(full_state_dict=True, ignore_frozen_params=True, strict=False)
SEPARATOR = "|"
STATE = "state.json"


def trained_weights(network: nn.Module) -> dict[str, Tensor]:
    """Collect the trained parameters by name, on the CPU, for the first process; every process must call this."""
    weights = get_model_state_dict(network, options=_options(network))
    constant = {name.removeprefix("module.") for name, _ in network.named_buffers()}  # such as a table of positions
    return copied({name: x for name, x in weights.items() if name not in constant})


def optimizer_state(network: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Collect the optimizer's tensors (`parameter|name`, or `parameter|group|name`) and its plain values, likewise."""
    whole = get_optimizer_state_dict(network, optimizer, options=_options(network))
    flat = flatten(whole.get("state", {}), SEPARATOR)  # bitsandbytes keeps its 8-bit tensors in a group of their own
    tensors = copied({key: value for key, value in flat.items() if isinstance(value, Tensor)})
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
    for parameter, held in optimizer.state.items():  # files know one order of axes; weights may lie in another
        for name, value in held.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                held[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def newest(folder: Path) -> Path | None:
    """Return the newest checkpoint in `folder`, or None."""
    return next(iter(_found(folder)), None)


def is_checkpoint(path: Path) -> bool:
    """Whether a checkpoint has such a name."""
    return PATTERN.fullmatch(path.name) is not None


def updates_done(path: Path | None) -> int:
    """Return how many updates a checkpoint stands for, by its name; 0 for None."""
    return 0 if path is None else int(path.name.removeprefix("step-"))


def save(
    folder: Path,
    step: int,
    tensors: dict[str, dict[str, Tensor]],
    values: dict[str, Any],
    *,
    keep: int,
    every: int = 1,
    given_up: Event | None = None,
) -> Path:
    """Write one checkpoint whole or not at all, then remove what is not to be kept: see `prune`.

    `tensors` are contents by file name (`weights` becomes `weights.safetensors`), `values` those of `state.json`. On a
    full disk those before this one are untouched. Another thread may set `given_up`: then it breaks off at the next
    file, with a `CancelledError`.
    """
    path = folder / NAME.format(step)
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    with whole_folder(path) as temporary:
        for name, content in tensors.items():
            if given_up is not None and given_up.is_set():
                raise CancelledError
            save_file(content, temporary / f"{name}.safetensors")
        held = {name: _describe(content) for name, content in tensors.items()}
        (temporary / STATE).write_text(json.dumps(values | {"tensors": held}))
    prune(folder, keep=keep, every=every)
    return path


def prune(folder: Path, *, keep: int, every: int = 1) -> None:
    """Remove old checkpoints.

    The newest `keep` of the regular ones stay, with `every` updates between them; one in between, after a signal, goes
    when the next checkpoint is there.
    """
    found = _found(folder)
    kept = [path for path in found if updates_done(path) % every == 0][:keep]
    for old in found[1:]:
        if old not in kept:
            discard(old)


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read what `save` wrote; of a broken one say how to go on from the newest whole one before it."""
    try:
        return _read(path)
    except BrokenError as error:
        found = _found(path.parent)
        whole = next((older for older in found if _is_whole(older)), None)
        if whole is None:
            raise UserError(
                f"{path} is broken: {error}. No whole checkpoint lies beside it: begin anew with --fresh, or give "
                "another folder with train.output=..."
            ) from error
        newer = found[: found.index(whole)]
        moves = "\n".join(f"  mv {shlex.quote(str(each))} {shlex.quote(str(_aside(each)))}" for each in newer)
        raise UserError(
            f"{path} is broken: {error}. {whole.name} is whole. To go on from there, move what is newer out of the way "
            f"and run the same command again:\n{moves}"
        ) from error


class BrokenError(Exception):
    """A checkpoint is not as it was written; the message says what is wrong."""


def flatten(tree: Mapping[str, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Make nested values flat, their keys joined: `{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        key = prefix + name
        flat |= flatten(value, separator, key + separator) if isinstance(value, Mapping) else {key: value}
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    """List the keys, sorted, whose values are not the same: each with its old and new value, None where it has none."""
    keys = sorted(old.keys() | new.keys())
    return {key: [old.get(key), new.get(key)] for key in keys if old.get(key) != new.get(key)}


def find_not_finite(tensors: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    """Name the tensors that hold a NaN or an infinity, with the file that they belong to."""
    return [
        f"{file}: {name}"
        for file, content in tensors.items()
        for name, x in content.items()
        if x.is_floating_point() and not _is_finite(x)
    ]


def _is_finite(x: Tensor) -> bool:
    """Whether all numbers are finite: then their sum usually is, which takes a small part of the time to see."""
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())


def _aside(path: Path) -> Path:
    """Find a free name for a broken checkpoint, under which nobody takes it for one."""
    names = (path.with_name(f"{path.name}.broken{number or ''}") for number in itertools.count())
    return next(name for name in names if not name.exists())


def _found(folder: Path) -> list[Path]:
    """List the checkpoints in `folder`, the newest one first."""
    found = [path for path in folder.glob("step-*") if is_checkpoint(path)]
    return sorted(found, key=updates_done, reverse=True)


def _read(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read one checkpoint, and check that every tensor is there, as it was written and finite."""
    file = path / STATE
    try:
        values = json.loads(file.read_text())
        held, tensors = values.pop("tensors"), {}
        for name in held:
            file = path / f"{name}.safetensors"
            tensors[name] = load_file(file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise BrokenError(f"{file.name} is missing or damaged ({error})") from error
    for name, content in tensors.items():
        if wrong := differences(held[name], _describe(content)):
            key, (written, there) = next(iter(wrong.items()))
            raise BrokenError(
                f"in {name}.safetensors {key} is {there or 'missing'}, and {written or 'nothing'} was written"
            )
    if bad := find_not_finite(tensors):
        raise BrokenError(f"{len(bad)} tensors are not finite, the first is {bad[0]}")
    return tensors, values


def _is_whole(path: Path) -> bool:
    try:
        _read(path)
    except BrokenError:
        return False
    return True


def _describe(content: Mapping[str, Tensor]) -> dict[str, str]:
    """Say of each tensor what its dtype and shape are, such as `float32[4, 16]`."""
    return {name: f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}" for name, x in content.items()}


def _options(network: nn.Module) -> StateDictOptions:
    """How a state is collected: pieces are put together one by one, on the CPU; what is whole stays where it lies."""
    return StateDictOptions(full_state_dict=True, cpu_offload=in_pieces(network), ignore_frozen_params=True)


def in_pieces(network: nn.Module) -> bool:
    """Whether the processes hold pieces of a network's weights."""
    return any(isinstance(p, DTensor) for p in network.parameters())


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors into host memory of their own, for the first process; the others get nothing.

    safetensors refuses tensors that share memory. What lies on a GPU goes into pinned memory, all at once.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
        return {}
    own = {
        name: x.detach().to("cpu", copy=True, non_blocking=x.is_cuda, memory_format=torch.contiguous_format)
        for name, x in tensors.items()
    }
    if torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()
    return own
