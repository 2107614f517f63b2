"""A LoRA on a base model: new or continued, its reference, its files."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from diffpo.core.block import Positive, Range, Sharing
from diffpo.core.types import Embedding
from diffpo.errors import UserError
from diffpo.models.adapter_files import adapter_shapes, sort_header
from diffpo.models.base import Denoiser
from diffpo.models.bases import BaseModel
from diffpo.models.finding import find_lora
from diffpo.models.reference import REFERENCE_ADAPTER, AdapterReference, Reference
from diffpo.models.tuning import Tuning

DEFAULT_RANK = 16


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
