"""What is trained of a base model: what every `model` block of the config says, and full tuning."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from diffpo.core.block import Block, Fraction, Guidance, Place
from diffpo.core.process import Time
from diffpo.core.types import DtypeName, Embedding
from diffpo.errors import UserError
from diffpo.models.base import Denoiser
from diffpo.models.bases import BaseModel, find_base
from diffpo.models.networks import cast
from diffpo.models.pipelines import load_network
from diffpo.models.reference import Reference, frozen_copy


@dataclass(frozen=True, kw_only=True)
class Tuning(Block, ABC):
    """A base model and how it is tuned."""

    trains_base: ClassVar[bool]
    """Whether the base's own weights are trained: then they are not rounded to `dtype`."""
    tells_users: ClassVar[bool] = False
    """Whether the network is told the user."""

    @property
    def changes_the_untold(self) -> bool:
        """Whether training changes what the network answers where nobody is told."""
        return True

    path: Place
    """Base model in diffusers format: a Hub id, a local folder, or `shapes:base`."""
    vae: Place | None = None
    """Another VAE (Hub id or folder), such as madebyollin/sdxl-vae-fp16-fix; for Stable Cascade its encoder's file, or
    a Hub id or folder that has it."""
    denoiser: Place | None = None
    """Start policy *and* reference from this network, not the base's: a diffusers network folder, or a run's."""
    lora: Place | None = None
    """Continue this adapter (folder, file or run); the reference is the base with it."""
    dtype: DtypeName | None = None
    """Dtype of frozen weights. Default: `train.dtype`, so that policy and reference start exactly equal."""
    encoder_dtype: DtypeName = "float32"
    """Dtype of the VAE and the text encoders, which run before training only."""
    empty_text: Literal["encoded", "zeros"] = "encoded"
    """What the empty caption becomes, which caption dropout gives. The default encodes it, as the released training
    scripts do. SDXL's sampler gives zeros instead where its pipeline says `force_zeros_for_empty_prompt`: `zeros`
    trains what is then used as the unconditional half of guidance."""
    prediction: Literal["eps", "v"] | None = None
    """What the network predicts, where the scheduler's file is wrong about it. Default: what that file says."""
    expert: Literal["high", "low"] | None = None
    """Which network is trained of a model that has two, for high and for low noise: each on its own range of times, in
    a run of its own."""
    beside: Place | None = None
    """A run that trained the other expert: the export holds both."""
    guidance: Guidance | None = None
    """What a network that was distilled with guidance is told while it trains, policy and reference alike. Default: 1,
    the data's own velocity; the value that one samples with trains what is then looked at."""
    attention: Place = "native"
    """Attention implementation: native, xformers, or what the network's family offers."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: a third more time for far less memory."""
    recomputed_share: Fraction = 1.0
    """Share of the network's blocks that gradient checkpointing recomputes, spread evenly: less than 1 takes less time
    for more memory."""
    time: Time = field(default_factory=Time)
    """How training times are drawn; left out, as the base model's family does."""

    def find(self) -> BaseModel:
        """Find the base model with what replaces parts of it, and check that everything fits; nothing is loaded.

        Raises:
            UserError: Something is not there, or does not fit.
        """
        base = find_base(self.path, vae=self.vae, denoiser=self.denoiser, expert=self.expert)
        base.check_vae_file()
        if self.beside is not None:
            self.other_expert(base)
        if self.guidance is not None and not base.config(base.component).get("guidance_embeds"):
            raise UserError(
                f"model.guidance is {self.guidance}, but the {base.component} of {self.path} was not distilled with "
                "guidance: leave model.guidance out"
            )
        self.check(base)
        return base

    def find_trained(self) -> BaseModel:
        """Do as `find`, for training: of a model that has two networks, one must be named.

        Raises:
            UserError: None is named, or what `find` raises.
        """
        base = self.find()
        if base.family.experts and self.expert is None:
            raise UserError(
                f"{self.path} has two networks, for high and for low noise: say model.expert=high or low, and train "
                "the other one in a second run"
            )
        return base

    @abstractmethod
    def check(self, base: BaseModel) -> None:
        """Refuse settings that this model cannot follow, with a `UserError`."""

    @abstractmethod
    def prepare(
        self, network: nn.Module, family: type[Denoiser], dtype: torch.dtype, embedding: Embedding | None = None
    ) -> None:
        """Mark and create, in place, what is trained, in `dtype`; everything else is frozen.

        `embedding` says what users' states are, for a network that is told the user.
        """

    @abstractmethod
    def reference(self, policy: Denoiser, dtype: torch.dtype, autocast: torch.dtype | None = None) -> Reference:
        """Make the frozen reference from the prepared policy.

        Args:
            policy: What it is made of.
            dtype: Of frozen weights of its own.
            autocast: What autocast makes of products while it is asked; None: there is no autocast.
        """

    @abstractmethod
    def save(self, folder: Path, base: BaseModel, network: Any, weights: dict[str, Tensor]) -> None:
        """Export whole `weights`, named as in the bare `network`, as plain diffusers reads them."""

    @abstractmethod
    def expert_file(self, family: type[Denoiser], folder: Path) -> Path:
        """Where an export in `folder` holds what was tuned of a family: a file, or a folder."""

    def other_expert(self, base: BaseModel) -> tuple[type[Denoiser], Path]:
        """The other expert's family, and what `beside` holds of it.

        Raises:
            UserError: It holds nothing of it, or there is no other expert.
        """
        others = [family for family in base.family.experts.values() if family is not base.family]
        for folder in (Path(str(self.beside)).expanduser() / "final", Path(str(self.beside)).expanduser()):
            for family in others:
                if (file := self.expert_file(family, folder)).exists():
                    return family, file
        raise UserError(
            f"model.beside is {self.beside}, which holds no {'full network' if self.trains_base else 'LoRA'} of the "
            "other expert: give the run that trained it in the same way, or leave model.beside out"
        )

    def copy_other(self, folder: Path, base: BaseModel) -> None:
        """Put the other expert, where there is one, into an export."""
        if self.beside is not None:
            family, file = self.other_expert(base)
            place = self.expert_file(family, folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if file.is_dir() else shutil.copyfile)(file, place)


@dataclass(frozen=True, kw_only=True)
class Full(Tuning):
    """Train every weight; the reference is a frozen copy."""

    trains_base: ClassVar[bool] = True

    def check(self, base: BaseModel) -> None:
        if self.lora is not None:
            raise UserError(f"model.lora is {self.lora}, but full tuning continues no adapter; choose model=lora")

    def prepare(
        self, network: nn.Module, family: type[Denoiser], dtype: torch.dtype, embedding: Embedding | None = None
    ) -> None:
        cast(network, dtype)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(not name.startswith(family.unheard(network.config)))

    def reference(self, policy: Denoiser, dtype: torch.dtype, autocast: torch.dtype | None = None) -> Reference:
        return frozen_copy(policy, dtype, autocast)

    def save(self, folder: Path, base: BaseModel, network: Any, weights: dict[str, Tensor]) -> None:
        """Write a network folder: `from_pretrained(folder / component)`."""
        config = {key: value for key, value in network.config.items() if key != "_name_or_path"}  # is published
        with torch.device("meta"):  # a plain module: the one in training may be sharded, and of another class then
            plain = base.network_class.from_config(config)
        buffers = {name: x.cpu() for name, x in network.named_buffers() if name in plain.state_dict()}
        if base.family.unheard(network.config):  # was not trained, and changes no answer: as it was published
            dtype = next(iter(weights.values())).dtype
            weights = load_network(base.part(base.component), dtype).state_dict() | weights
        plain.load_state_dict(weights | buffers, assign=True)
        plain.save_pretrained(folder / base.component)
        self.copy_other(folder, base)

    def expert_file(self, family: type[Denoiser], folder: Path) -> Path:
        return folder / family.components[0]
