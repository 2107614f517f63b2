"""From a diffusers folder or Hub id to a policy and its reference."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download

from diffpo.denoisers import DENOISERS, Denoiser
from diffpo.denoisers.reference import Reference
from diffpo.denoisers.tuning import DTYPES, Tuning, find_network
from diffpo.errors import UserError

UNET_ATTENTION = ("native", "xformers")


@dataclass(frozen=True)
class BaseModel:
    """A diffusers pipeline on disk and what diffpo makes of it."""

    folder: Path
    """Where the files are; a Hub model is in the Hub's cache by now."""
    pipeline: str
    """Name of the pipeline's class."""
    family: type[Denoiser]

    @property
    def pipeline_class(self) -> Any:
        """The class itself."""
        return getattr(diffusers, self.pipeline)

    @property
    def network_class(self) -> Any:
        """Class of the network that is trained."""
        _, name = read_json(self.folder / "model_index.json")[self.family.component]
        return getattr(diffusers, name)


def find_base(path: str) -> BaseModel:
    """Locate a base model and recognise its family.

    Raises:
        UserError: Nothing is there, it is no diffusers pipeline, its family is not supported, or the Hub cannot be
        reached.
    """
    folder = _folder(path)
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(
            f"{path} is no diffusers model: it holds no model_index.json. Give the folder that "
            f"`pipe.save_pretrained` wrote, or a Hub id"
        )
    name = read_json(index).get("_class_name")
    for family in DENOISERS.values():
        if name in family.pipelines:
            return BaseModel(folder, name, family)
    known = ", ".join(p for family in DENOISERS.values() for p in family.pipelines)
    raise UserError(f"{path} is a {name}, which diffpo does not train; supported are {known}")


def load(tuning: Tuning, dtype: torch.dtype, needs_reference: bool) -> tuple[Denoiser, Reference | None]:
    """Load the policy, prepared for training, and its reference.

    Args:
        tuning: The config's `model` block.
        dtype: Dtype of what is trained.
        needs_reference: Whether to make a reference at all.
    """
    base = find_base(tuning.path)
    family, frozen = base.family, DTYPES[tuning.dtype] if tuning.dtype else dtype
    network = load_network(base, tuning.denoiser, frozen)
    process = family.make_process(read_json(base.folder / "scheduler" / "scheduler_config.json"), tuning.time)
    tuning.prepare(network, family, dtype)
    if tuning.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    set_attention(network, tuning.attention)
    policy = family(network, process)
    return policy, tuning.reference(policy, frozen) if needs_reference else None


def load_network(base: BaseModel, denoiser: str | None, dtype: torch.dtype) -> Any:
    """Load the base's network, or the one at `denoiser` (same class).

    Raises:
        UserError: Its files are missing, broken, or those of another network.
    """
    folder = base.folder / base.family.component
    if denoiser is not None:
        folder = find_network(denoiser, base.family.component)
    try:
        return base.network_class.from_pretrained(folder, dtype=dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot load a {base.network_class.__name__} from {folder}: {error}") from error


def read_json(file: Path) -> dict[str, Any]:
    """Read one of a model's JSON files.

    Raises:
        UserError: It is missing or broken.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file}: {error}") from error


def set_attention(network: Any, name: str) -> None:
    """Choose the attention implementation, and check that the choice arrived.

    UNets and SD3 choose by attention processor; newer transformers through diffusers' dispatcher, which silently does
    nothing to the others.

    Raises:
        UserError: The name is unknown, not installed, or changes nothing for this network.
    """
    if name == "native":  # scaled_dot_product_attention, diffusers' default
        return
    before = _attention_state(network)
    try:
        if name == "xformers":
            network.enable_xformers_memory_efficient_attention()
        else:
            network.set_attention_backend(name)
    except (ValueError, ModuleNotFoundError, ImportError, RuntimeError) as error:
        raise UserError(f"model.attention={name} cannot be used here: {error}") from error
    if _attention_state(network) == before:
        raise UserError(
            f"model.attention={name} changes nothing for a {type(network).__name__}; allowed are "
            f"{', '.join(UNET_ATTENTION)}"
        )


def _attention_state(network: Any) -> list[tuple[str, Any]]:
    processors = network.attn_processors.values()
    return [(type(p).__name__, vars(p).get("_attention_backend")) for p in processors]


def _folder(path: str) -> Path:
    if path == "shapes:base":
        from diffpo.shapes.assets import asset_path

        return Path(asset_path("pipeline"))
    if Path(path).is_dir():
        return Path(path)
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise UserError(f"no model at {path}: there is no such folder, and it is no Hub id (owner/name)")
    return Path(download(path))


def download(repo: str, needed: str = "model_index.json") -> str:
    """Fetch a model from the Hub, or find it in the cache; returns the snapshot's folder.

    Args:
        repo: `owner/name`.
        needed: The file without which it is of no use.

    Raises:
        UserError: It is neither reachable nor cached.
    """
    try:
        if needed == "model_index.json":
            return DiffusionPipeline.download(repo)  # only the files that the pipeline names
        return snapshot_download(repo, allow_patterns=["*.json", "*.safetensors"])
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"cannot get {repo} from the Hub: {needed} is not cached and could not be fetched "
            f"({type(error).__name__}). "
            f"Without a network, give a local folder in diffusers format instead, such as model.path=/path/to/model"
        ) from error
