"""How networks that judge or describe are loaded: without a gap, and without running code that comes with weights.

    read_state, load_state    one file of tensors -> a network of ours
    load_network              a folder of transformers -> its network
    load_part                 a folder of transformers -> a tokenizer or a processor

Networks come ready to judge: in their dtype, on their device, without gradients. Weights are safetensors, or torch
files of tensors alone: a pickle could run any code, so none is opened. Classes that come with a model are never used;
what transformers does not know itself is refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from diffpo.compat import ensure_torchvision, pick_device
from diffpo.disk.weights import MORE_THAN_TENSORS, reason
from diffpo.errors import UserError
from diffpo.scorers.parts import describe_folder, read_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    Network = TypeVar("Network", bound=nn.Module)

_CONTENTS = {
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
    "fnet.": "a RAFT in its authors' layout",
    "layers.": "an aesthetic head",
}
"""What a checkpoint is by a part of its names; the first that fits."""


class Kind(NamedTuple):
    """A kind of model of transformers."""

    auto: str
    """The class of transformers that loads it."""
    types: str
    """The `model_type`s that it may have, with spaces between, or the table of transformers that lists them."""
    spare: tuple[str, ...] = ()
    """What the names of weights begin with that nobody asks for, so that they may be missing."""


CLIP = Kind("AutoModel", "clip")
IMAGE_TEXT = Kind("AutoModel", "clip align")
"""Models with one space for images and texts."""
VIT = Kind("AutoModel", "vit dinov2 dinov2_with_registers", spare=("pooler.",))  # DINO is published without it


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a file's tensors by name; what trainers wrap around them (`state_dict`, `model`, `module.`) is taken off."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, KeyError) as error:
        raise UserError(
            f"{path} {MORE_THAN_TENSORS}. Give a file of weights alone (a state dict), best as safetensors."
        ) from error
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} cannot be read as weights: {reason(error)}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{path} holds no weights by name. Give a state dict, best as safetensors.")
    if all(name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): value for name, value in content.items()}
    return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}


def load_state(
    network: Network, state: Mapping[str, Tensor], *, path: Path, what: str, dtype: str | None, device: str
) -> Network:
    """Make weights those of a network, and the network ready to judge, in place; every name and shape must agree.

    The network's own weights may be on the meta device. `path` and `what` say where the weights come from and what they
    should be, for messages. A dtype that is None is that of the weights.
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
    return _frozen(network, dtype, device)


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Take the weights whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def describe(state: Mapping[str, Tensor]) -> str:
    """Say what weights seem to be, by their names."""
    return next((kind for part, kind in _CONTENTS.items() if any(part in name for name in state)), "unknown weights")


def _frozen(network: Network, dtype: str | None, device: str) -> Network:
    import torch

    return network.eval().requires_grad_(False).to(pick_device(device), dtype and getattr(torch, dtype))


def check_kind(folder: Path, kind: Kind, what: str) -> None:
    """Check by its configuration that a folder is what it should be: transformers would fill up with random numbers."""
    ensure_torchvision()
    allowed: Container[str] = kind.types.split()
    if kind.types.isupper():
        from transformers.models.auto import modeling_auto

        allowed = getattr(modeling_auto, kind.types)
    if read_json(folder / "config.json").get("model_type") not in allowed:
        raise UserError(f"{folder} is {describe_folder(folder)}, which is not {what} ({kind.auto} of transformers).")


def load_network(folder: Path, kind: Kind, what: str, *, dtype: str, device: str) -> Any:
    """Load a network from a folder of transformers, ready to judge.

    Args:
        folder: As `save_pretrained` writes it.
        kind: What it must be.
        what: The same for messages: "a causal language model".
        dtype: `float32`, ...; `auto` is what the files hold.
        device: `auto`, `cpu`, `cuda`, ...

    Raises:
        UserError: If the folder holds another kind, not all of its weights, or more than weights.
    """
    check_kind(folder, kind, what)
    options = {"dtype": dtype, "output_loading_info": True, "weights_only": True}
    network, info = _from_pretrained(kind.auto, folder, what, options)
    if missing := sorted(name for name in info["missing_keys"] if not name.startswith(kind.spare)):
        raise UserError(f"{folder} is not whole: {len(missing)} weights are missing, {missing[0]} first.")
    return _frozen(network, None, device)


def load_part(folder: str | Path, auto: str, what: str) -> Any:
    """Load a tokenizer, a processor or a configuration.

    Images are resized and cropped by PIL, on every machine: that is what the authors of the scorers ran. Processors of
    torchvision, which transformers prefers where it is installed, round differently.

    Args:
        folder: Where it is; a Hub id only if open_clip names it.
        auto: `AutoTokenizer`, `AutoImageProcessor`, `AutoProcessor` or `AutoConfig`.
        what: For messages: "CLIP's tokenizer".

    Raises:
        UserError: If the folder does not hold it.
    """
    return _from_pretrained(auto, folder, what, {"backend": "pil"} if auto == "AutoImageProcessor" else {})


def _from_pretrained(auto: str, folder: str | Path, what: str, options: Mapping[str, Any]) -> Any:
    ensure_torchvision()
    import transformers

    try:
        return getattr(transformers, auto).from_pretrained(folder, trust_remote_code=False, **options)
    except Exception as error:  # what broken files make of transformers, tokenizers and torch has no common type
        raise UserError(f"{folder} cannot be loaded as {what}: {reason(error)}") from error
