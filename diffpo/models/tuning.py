"""What is trained: the whole network, or a LoRA on it. These are the config's `model` blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from diffpo.core.block import Block, Place, Positive, Range, Sharing
from diffpo.core.process import Time
from diffpo.errors import UserError
from diffpo.models.base import Denoiser
from diffpo.models.pipelines import find_lora
from diffpo.models.reference import REFERENCE_ADAPTER, AdapterReference, Reference, frozen_copy

if TYPE_CHECKING:
    from diffpo.models.load import BaseModel

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
DtypeName = Literal["float32", "float16", "bfloat16", "float64"]


@dataclass(frozen=True, kw_only=True)
class Tuning(Block, ABC):
    """A base model and how it is tuned."""

    trains_base: ClassVar[bool]
    """Whether the base's own weights are trained: then they are not rounded to `dtype`."""

    path: Place
    """Base model in diffusers format: a Hub id, a local folder, or `shapes:base`."""
    vae: Place | None = None
    """Another VAE (Hub id or folder), such as madebyollin/sdxl-vae-fp16-fix."""
    denoiser: Place | None = None
    """Start policy *and* reference from this network, not the base's: a diffusers network folder, or a run's."""
    lora: Place | None = None
    """Continue this adapter (folder, file or run); the reference is the base with it."""
    dtype: DtypeName | None = None
    """Dtype of frozen weights. Default: `train.dtype`, so that policy and reference start exactly equal."""
    encoder_dtype: DtypeName = "float32"
    """Dtype of the VAE and the text encoders, which run before training only."""
    attention: Place = "native"
    """Attention implementation: native, xformers, or what the network's family offers."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: a third more time for far less memory."""
    time: Time = field(default_factory=Time)
    """How training times are drawn; left out, as the base model's family does."""

    @abstractmethod
    def prepare(self, network: nn.Module, family: type[Denoiser], dtype: torch.dtype) -> None:
        """Mark and create, in place, what is trained, in `dtype`; everything else is frozen."""

    @abstractmethod
    def reference(self, policy: Denoiser, dtype: torch.dtype) -> Reference:
        """Make the frozen reference from the prepared policy; frozen weights of its own have `dtype`."""

    @abstractmethod
    def save(self, folder: Path, base: BaseModel, network: Any, weights: dict[str, Tensor]) -> None:
        """Export whole `weights`, named as in the bare `network`, as plain diffusers reads them."""


@dataclass(frozen=True, kw_only=True)
class Full(Tuning):
    """Train every weight; the reference is a frozen copy."""

    trains_base: ClassVar[bool] = True

    def prepare(self, network: nn.Module, family: type[Denoiser], dtype: torch.dtype) -> None:
        """Train all parameters.

        Raises:
            UserError: An adapter to continue was given.
        """
        if self.lora is not None:
            raise UserError(f"model.lora is {self.lora}, but full tuning continues no adapter; choose model=lora")
        network.to(dtype).requires_grad_(True)

    def reference(self, policy: Denoiser, dtype: torch.dtype) -> Reference:
        """Copy."""
        return frozen_copy(policy, dtype)

    def save(self, folder: Path, base: BaseModel, network: Any, weights: dict[str, Tensor]) -> None:
        """Write a network folder: `from_pretrained(folder / component)`."""
        with torch.device("meta"):  # a plain module: the one in training may be sharded, and of another class then
            plain = base.network_class.from_config(network.config)
        buffers = {name: x.cpu() for name, x in network.named_buffers() if name in plain.state_dict()}
        plain.load_state_dict(weights | buffers, assign=True)
        plain.save_pretrained(folder / base.family.component)


@dataclass(frozen=True, kw_only=True)
class LoRA(Tuning):
    """Train low-rank adapters; the reference is the same network with them switched off."""

    trains_base: ClassVar[bool] = False

    rank: Annotated[int, Range(least=1, most=4096)] = 16
    """Rank of the two factors."""
    alpha: Positive | None = None
    """The adapter is scaled by alpha / rank. Default: the rank."""
    dropout: Sharing = 0.0
    """Must be 0 for a method with a reference, or the two networks no longer see the same input."""
    targets: tuple[str, ...] | None = None
    """Endings of the adapted modules' names. Default: the attention projections of the model's family."""
    init: Literal["gaussian", "default"] = "gaussian"
    """How the first factor starts; the second starts at zero."""

    def prepare(self, network: Any, family: type[Denoiser], dtype: torch.dtype) -> None:
        """Add (or load) the adapter; the base keeps its dtype, the adapter gets `dtype`.

        Raises:
            UserError: It fits no module of the network.
        """
        network.requires_grad_(False)
        if self.lora is None:
            self._add(network, family)
        else:
            self._continue(network, family, self.lora)
        for name, parameter in network.named_parameters():
            trained = ".lora_" in name and f".{REFERENCE_ADAPTER}." not in name
            parameter.requires_grad_(trained)
            if ".lora_" in name:
                parameter.data = parameter.data.to(dtype)

    def reference(self, policy: Denoiser, dtype: torch.dtype) -> Reference:
        """Switch adapters in the policy's own network."""
        return AdapterReference(policy)

    def save(self, folder: Path, base: BaseModel, network: Any, weights: dict[str, Tensor]) -> None:
        """Write what `pipe.load_lora_weights(folder)` reads, its metadata (rank, alpha) included."""
        from peft.utils import get_peft_model_state_dict

        layers = get_peft_model_state_dict(network, state_dict=weights, adapter_name="default")
        metadata = network.peft_config["default"].to_dict()
        name = f"{base.family.component}_lora"
        base.pipeline_class.save_lora_weights(
            folder, **{f"{name}_layers": layers, f"{name}_adapter_metadata": metadata}
        )

    def _add(self, network: Any, family: type[Denoiser]) -> None:
        from peft import LoraConfig

        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.rank if self.alpha is None else self.alpha,  # pyright: ignore[reportArgumentType]
            lora_dropout=self.dropout,
            target_modules=list(self.targets or family.lora_targets),
            init_lora_weights="gaussian" if self.init == "gaussian" else True,
        )
        try:
            network.add_adapter(config)
        except ValueError as error:  # peft's: a name that ends no module's, or a module that it cannot adapt
            raise UserError(
                f"model.targets is {', '.join(config.target_modules)}, which a {type(network).__name__} cannot adapt "
                f"({error}); give endings of module names, such as {', '.join(family.lora_targets)}"
            ) from error

    def _continue(self, network: Any, family: type[Denoiser], path: str) -> None:
        file = find_lora(path).path
        try:
            for adapter in (REFERENCE_ADAPTER, "default"):
                network.load_lora_adapter(
                    file.parent, weight_name=file.name, prefix=family.component, adapter_name=adapter
                )
            network.set_adapter("default")  # raises if nothing of the file was for this network
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"the adapter {path} does not fit a {type(network).__name__}: {error}") from error


MODELS: dict[str, type[Tuning]] = {"full": Full, "lora": LoRA}
