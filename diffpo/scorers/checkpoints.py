"""Single files of weights: where they are, what is in them, and how they get into a network without a gap.

safetensors, or torch files of tensors alone: a pickle could run any code, so none is opened.
"""

from __future__ import annotations

import json
import pickle
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from diffpo.disk.weights import Weights, local, locate, snapshot
from diffpo.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_KINDS = {
    "lora": "a LoRA",
    "rm_head.": "an HPSv3",
    "cross_model.": "an MPS",
    "visual.blocks.": "a Qwen2-VL",
    "visual.": "a CLIP in open_clip's layout, as HPS has",
    "vision_model.": "a CLIP in the layout of transformers, as PickScore has",
    "blip.": "an ImageReward",
    "encoder.down_blocks.": "a VAE of diffusers",
    "model.diffusion_model.": "a Stable Diffusion checkpoint",
    "down_blocks.": "a UNet of diffusers",
    "transformer_blocks.": "a transformer of diffusers",
    "layers.": "an aesthetic head",
}
"""What a checkpoint is by a part of its names; the first that fits."""


def find_file(spec: str, *, file: str, what: str) -> Weights:
    """Find one file of weights.

    Args:
        spec: A local file, a local folder, a Hub id or an address that begins with https://.
        file: Its name in a Hub repository; also in a folder, unless there is only one file of weights.
        what: What it should be, for messages.

    Raises:
        UserError: If it is not there and cannot be fetched.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        return local(pick_file(path, [file], what))
    if spec.startswith("https://"):
        return local(_download(spec, what))
    found = locate(spec, what=what, fetch=partial(snapshot, what=what, patterns=[file], probe=file))
    if found.path.is_file():
        return found
    chosen = pick_file(found.path, [file], what)
    return Weights(chosen, f"{found.identity}/{chosen.name}")


def pick_file(folder: Path, names: list[str], what: str) -> Path:
    """Find the first of `names` in a folder, else the only file of weights there.

    Raises:
        UserError: If there is none, or several that nothing tells apart.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    if len(files) == 1:
        return files[0]
    there = f"several files of weights ({', '.join(file.name for file in files)})" if files else "no file of weights"
    raise UserError(f"{folder} has {there} and no {names[0]}. Give the path of {what}.")


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a file's tensors by name; what trainers wrap around them (`state_dict`, `model`, `module.`) is taken off.

    Raises:
        UserError: If it is no such file, holds more than tensors, or not even those.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors, or is no torch file; opening it could run any code, so it is not opened. "
            "Give a file of weights alone (a state dict), best as safetensors."
        ) from error
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} cannot be read as weights: {error}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{path} holds no weights by name. Give a state dict, best as safetensors.")
    if all(name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): value for name, value in content.items()}
    return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}


def load_state(network: nn.Module, state: dict[str, Tensor], *, path: Path, what: str) -> None:
    """Make weights those of a network, in their own dtype; every name and shape must agree.

    Args:
        network: What they are for; its own weights may be on the meta device.
        state: As from `read_state`.
        path: Where they come from, for messages.
        what: What they should be, for messages.

    Raises:
        UserError: If names or shapes differ, with what the weights seem to be.
    """
    own = network.state_dict()
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        first = f"{missing[0]} is missing" if missing else f"{unknown[0]} has no place"
        raise UserError(
            f"{path} holds {describe(state)}, which is not {what}: {len(missing)} weights are missing and "
            f"{len(unknown)} are unknown; {first}."
        )
    for name, value in own.items():
        if value.shape != state[name].shape:
            raise UserError(
                f"{path} is not {what}: {name} has the shape {list(state[name].shape)} where {list(value.shape)} is "
                "expected. Is the architecture another one?"
            )
    network.load_state_dict(state, assign=True)


def describe(state: dict[str, Tensor]) -> str:
    """What weights seem to be, by their names."""
    return next((kind for part, kind in _KINDS.items() if any(part in name for name in state)), "unknown weights")


def describe_folder(folder: Path) -> str:
    """What a folder of weights seems to be, by its configuration."""
    if (folder / "model_index.json").is_file():
        return "a pipeline of diffusers"
    if (folder / "open_clip_config.json").is_file():
        return "a model of open_clip"
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if "_class_name" in config:
        return f"a {config['_class_name']} of diffusers"
    return f"a {config['model_type']!r} model" if "model_type" in config else "no model of transformers"


def read_json(path: Path) -> dict:
    """Read a configuration.

    Raises:
        UserError: If it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no readable JSON file: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} should hold a JSON object, and is a {type(content).__name__}.")
    return content


def _download(address: str, what: str) -> Path:
    """Fetch a file into torch's cache, unless it is there."""
    import torch.hub

    path = Path(torch.hub.get_dir()) / "checkpoints" / address.rsplit("/", 1)[-1].partition("?")[0]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(path), progress=False)
        except OSError as error:
            raise UserError(
                f"{path.name} is neither in {path.parent} nor can {address} be reached ({error}). Connect once to "
                f"download it, or give the path of {what}."
            ) from error
    return path
