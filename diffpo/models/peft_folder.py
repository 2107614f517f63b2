"""LoRAs as PEFT's own folder, for pipelines that diffusers gives no LoRA file.

    from peft import PeftModel
    pipe.transformer = PeftModel.from_pretrained(pipe.transformer, folder)

The folder holds `adapter_model.safetensors` and, since the tensors do not tell how strong they are,
`adapter_config.json`.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffpo.disk.files import write_json

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # PEFT's name for the network inside its wrapper


def is_peft_folder(path: Path) -> bool:
    """Whether a folder holds an adapter in PEFT's format."""
    return (path / CONFIG_FILE).is_file() and (path / TENSORS_FILE).is_file()


def save_peft_folder(folder: Path, layers: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write an adapter, its tensors named as in the bare network, with PEFT's configuration of it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {_PREFIX + name: x.contiguous().cpu() for name, x in layers.items()}, folder / TENSORS_FILE, {"format": "pt"}
    )
    write_json(folder / CONFIG_FILE, config)


def load_peft_folder(network: nn.Module, folder: Path, adapter: str) -> None:
    """Add an adapter to a network, in place.

    Args:
        network: The bare one.
        folder: In PEFT's format.
        adapter: The name that it gets.

    Raises:
        ValueError: It is no LoRA, or some of its tensors fit nothing in the network.
        RuntimeError: Its tensors have other shapes than the network's layers.
    """
    from peft import LoraConfig, PeftConfig, inject_adapter_in_model
    from peft.utils import set_peft_model_state_dict

    said = PeftConfig.check_kwargs(**PeftConfig.from_json_file(str(folder / CONFIG_FILE)))
    config = PeftConfig.from_peft_type(**said)
    if not isinstance(config, LoraConfig):
        raise ValueError(f"{folder / CONFIG_FILE} describes a {config.peft_type}, no LoRA")
    tensors = {name.removeprefix(_PREFIX): x for name, x in load_file(folder / TENSORS_FILE).items()}
    inject_adapter_in_model(config, network, adapter_name=adapter)
    unused = set_peft_model_state_dict(network, tensors, adapter_name=adapter).unexpected_keys
    if unused:
        raise ValueError(f"{len(unused)} tensors fit nothing in it, such as {unused[0]}")
