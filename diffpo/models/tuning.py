"""What is trained: the whole network, or a LoRA on it. These are the config's `model` blocks."""

from __future__ import annotations

import shutil
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from diffpo.core.block import Block, Fraction, Guidance, Place, Positive, Range, Sharing
from diffpo.core.process import Time
from diffpo.core.types import DtypeName, Embedding
from diffpo.errors import UserError
from diffpo.models.adapter_files import adapter_shapes, sort_header
from diffpo.models.base import Denoiser
from diffpo.models.bases import BaseModel, find_base
from diffpo.models.finding import find_lora
from diffpo.models.networks import cast
from diffpo.models.reference import REFERENCE_ADAPTER, AdapterReference, Reference, frozen_copy


@dataclass(frozen=True, kw_only=True)
class Tuning(Block, ABC):
    """A base model and how it is tuned."""

    trains_base: ClassVar[bool]
    """Whether the base's own weights are trained: then they are not rounded to `dtype`."""
    tells_users: ClassVar[bool] = False
    """Whether the network is told the user."""

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
        plain.load_state_dict(weights | buffers, assign=True)
        plain.save_pretrained(folder / base.component)
        self.copy_other(folder, base)

    def expert_file(self, family: type[Denoiser], folder: Path) -> Path:
        return folder / family.components[0]


@dataclass(frozen=True, kw_only=True)
class LoRA(Tuning):
    """Train low-rank adapters; the reference is the same network with them switched off."""

    trains_base: ClassVar[bool] = False

    rank: Annotated[int, Range(least=1, most=4096)] | None = None
    """Rank of the two factors. Default: 16, or what the file `lora` has."""
    alpha: Positive | None = None
    """The adapter is scaled by alpha / rank. Default: the rank, or what the file `lora` says."""
    dropout: Sharing = 0.0
    """Must be 0 for a method with a reference, or the two networks no longer see the same input."""
    targets: tuple[str, ...] | None = None
    """Endings of the adapted modules' names. Default: the attention projections of the model's family."""
    init: Literal["gaussian", "default"] = "gaussian"
    """How the first factor of a new adapter starts: normal with deviation 1 / rank, or peft's uniform one. The second
    starts at zero."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank is None and self.lora is None:
            object.__setattr__(self, "rank", DEFAULT_RANK)

    def check(self, base: BaseModel) -> None:
        if self.lora is not None:
            self._check_file(find_lora(self.lora).path, base.component)

    def prepare(
        self, network: Any, family: type[Denoiser], dtype: torch.dtype, embedding: Embedding | None = None
    ) -> None:
        """Add (or load) the adapter; the base keeps its dtype, the adapter gets `dtype`.

        Raises:
            UserError: It fits no module of the network.
        """
        network.requires_grad_(False)
        if self.lora is None:
            self._add(network, family)
        else:
            self._continue(network, family, self.lora)
        unheard = family.unheard(network.config)
        for name, parameter in network.named_parameters():
            if ".lora_" in name:
                parameter.data = parameter.data.to(dtype)
            trained = ".lora_" in name and f".{REFERENCE_ADAPTER}." not in name and not name.startswith(unheard)
            parameter.requires_grad_(trained)

    def reference(self, policy: Denoiser, dtype: torch.dtype, autocast: torch.dtype | None = None) -> Reference:
        return AdapterReference(policy)

    def save(self, folder: Path, base: BaseModel, network: Any, weights: dict[str, Tensor]) -> None:
        """Write what `pipe.load_lora_weights(folder)` or PEFT reads, its rank and alpha included."""
        import diffusers
        from peft.utils import get_peft_model_state_dict

        layers = get_peft_model_state_dict(network, state_dict=weights, adapter_name="default")
        said = network.peft_config["default"].to_dict()
        config = {key: sorted(value) if isinstance(value, set) else value for key, value in said.items()}
        if config.get("exclude_modules"):  # by their whole names: whoever reads the file has nothing to leave out
            adapted = sorted({name.partition(".lora_")[0] for name in layers})
            config |= {"target_modules": adapted, "exclude_modules": None}
        base.family.save_lora(getattr(diffusers, base.pipeline), base.component, folder, layers, config)
        for file in folder.rglob("*.safetensors"):
            sort_header(file)
        self.copy_other(folder, base)

    def expert_file(self, family: type[Denoiser], folder: Path) -> Path:
        return family.lora_file(folder)

    def _add(self, network: Any, family: type[Denoiser]) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        targets = list(self.targets or family.lora_targets)
        meant = [name for name, _ in network.named_modules() if f".{name}".endswith(tuple(f".{x}" for x in targets))]
        unheard = [part for part in family.unheard(network.config) if any(name.startswith(part) for name in meant)]
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.rank if self.alpha is None else self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
            exclude_modules=unheard or None,  # PEFT warns of those that none of the targets would be
            init_lora_weights="gaussian" if self.init == "gaussian" else True,
        )
        try:
            inject_adapter_in_model(config, network)
        except ValueError as error:  # peft's: a name that ends no module's, or a module that it cannot adapt
            raise UserError(
                f"model.targets is {', '.join(config.target_modules)}, which a {type(network).__name__} cannot adapt "
                f"({error}); give endings of module names, such as {', '.join(family.lora_targets)}"
            ) from error

    def _continue(self, network: Any, family: type[Denoiser], path: str) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils import get_peft_model_state_dict

        found, component = find_lora(path).path, family.components[0]
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")  # two adapters are meant
                for adapter in (REFERENCE_ADAPTER, "default"):
                    family.load_lora(network, component, found, adapter)
            layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
            if not layers:  # diffusers only logs this
                raise ValueError("nothing in it is for this network")
            for layer in layers:
                layer.set_adapter("default")
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"the adapter {path} does not fit a {type(network).__name__}: {error}") from error
        used, held = len(get_peft_model_state_dict(network, adapter_name="default")), len(adapter_shapes(found))
        if used != held:
            raise UserError(
                f"the adapter {path} does not fit a {type(network).__name__}: it holds {held} tensors, of which the "
                f"network takes {used}. Give the base that the adapter was trained on"
            )

    def _check_file(self, file: Path, component: str) -> None:
        """Refuse an adapter that would be used in part only, or against the settings."""
        shapes = adapter_shapes(file)
        others = sorted({name.partition(".")[0] for name in shapes} - {component})
        if others and any(name.startswith(f"{component}.") for name in shapes):
            raise UserError(
                f"the adapter {file} also changes {', '.join(others)}, which diffpo does not train: it would be "
                f"dropped. Give an adapter of the {component} alone"
            )
        first = ("lora_A.weight", "lora_down.weight", "lora.down.weight")
        ranks = {shape[0] for name, shape in shapes.items() if name.endswith(first)}
        if self.rank is not None and ranks and ranks != {self.rank}:
            raise UserError(
                f"model.rank is {self.rank}, but the adapter {file} has rank {', '.join(map(str, sorted(ranks)))}; "
                "a continued adapter keeps its rank: leave model.rank out"
            )
        given = [name for name in ("alpha", "targets") if getattr(self, name) is not None]
        if given:
            raise UserError(
                f"model.{given[0]} is {getattr(self, given[0])}, but the continued adapter {file} has one of its own: "
                f"leave model.{given[0]} out"
            )


DEFAULT_RANK = 16
