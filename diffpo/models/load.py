"""From a diffusers folder or Hub id to a policy and its reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch

from diffpo.errors import UserError
from diffpo.models import DENOISERS, Denoiser, pipelines
from diffpo.models.pipelines import find_denoiser, read_json
from diffpo.models.reference import Reference
from diffpo.models.tuning import DTYPES, Tuning

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
    def index(self) -> dict[str, Any]:
        """The pipeline's `model_index.json`: which class each component has."""
        return read_json(self.folder / "model_index.json")

    @property
    def network_class(self) -> Any:
        """Class of the network that is trained."""
        _, name = self.index[self.family.component]
        return getattr(diffusers, name)


def find_base(path: str) -> BaseModel:
    """Locate a base model and recognise its family.

    Raises:
        UserError: Nothing is there, it is no diffusers pipeline, its family is not supported, or the Hub cannot be
        reached.
    """
    folder = pipelines.find_pipeline(path).path
    name = read_json(folder / "model_index.json").get("_class_name")
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
    network = load_network(base, tuning.denoiser, dtype if tuning.trains_base else frozen)
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
        folder = find_denoiser(denoiser).path
    try:
        return base.network_class.from_pretrained(folder, dtype=dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot load a {base.network_class.__name__} from {folder}: {error}") from error


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
