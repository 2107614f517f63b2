"""What the package knows of a network: `predict(z, t, cond)`, its noise process, how its prompts are encoded.

A family is one subclass in one file: it translates layout, time scale and conditioning, and nothing outside the file
knows them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from diffpo.core.process import DiscreteProcess, NoiseProcess, Time
from diffpo.core.types import Condition
from diffpo.errors import UserError


class Denoiser(ABC):
    """A network behind the one interface that methods use."""

    pipelines: ClassVar[tuple[str, ...]]
    """Names of the diffusers pipeline classes that this family reads."""
    component: ClassVar[str]
    """The network's name in such a pipeline: `unet` or `transformer`."""
    lora_targets: ClassVar[tuple[str, ...]]
    """Modules that a LoRA adapts unless the config names others."""
    blocks: ClassVar[tuple[str, ...]]
    """Classes of the network's repeated blocks: what regional compilation compiles."""
    multiple: ClassVar[int]
    """Pixel sizes must be divisible by the VAE's factor times this."""
    token_limits: ClassVar[dict[str, int]] = {}
    """Tokens that the pipeline reads of a prompt, by its name for the tokenizer; others read the tokenizer's own."""

    def __init__(self, network: nn.Module, process: NoiseProcess):
        """Remember both. `network` is what accelerate wraps: the loop assigns the wrapped module back."""
        self.network = network
        self.process = process

    @abstractmethod
    def predict(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Answer z `[b c f h w]` at time t `[b]` in the process's own parametrisation, `[b c f h w]`."""

    @staticmethod
    @abstractmethod
    def make_process(scheduler: dict[str, Any], time: Time) -> NoiseProcess:
        """Read the noise process out of a pipeline's scheduler configuration."""

    @staticmethod
    @abstractmethod
    def encode_prompt(pipeline: Any, prompt: str) -> dict[str, Tensor]:
        """Encode one prompt: `text` `[n d]`, and whatever else the family is told; there is no batch axis."""

    def compile(self) -> None:
        """Compile the repeated blocks in place: each class is compiled once, however often it occurs."""
        for module in self.network.modules():
            if type(module).__name__ in self.blocks:
                module.compile()

    def lockstep(self, n: int) -> int:
        """Return the largest n over the processes among which the network is sharded, or n where it is whole.

        Each call of a sharded network gathers its parameters from all processes: one that called less often would leave
        the others waiting for ever.
        """
        parameter = next(self.network.parameters())
        if not isinstance(parameter, DTensor):
            return n
        most = torch.tensor(n, device=parameter.device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        return int(most)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network's weights: what its inputs are cast to."""
        return next(p.dtype for p in self.network.parameters() if p.is_floating_point())


def with_network(denoiser: Denoiser, network: nn.Module) -> Denoiser:
    """The same family and process around another network."""
    return type(denoiser)(network, denoiser.process)


def discrete_process(scheduler: dict[str, Any], time: Time) -> DiscreteProcess:
    """Build the process of a DDPM-type scheduler from its own float32 `alphas_cumprod`.

    Raises:
        UserError: The scheduler predicts something other than epsilon or v.
    """
    from diffusers import DDPMScheduler

    names = {"epsilon": "eps", "v_prediction": "v"}
    kind = scheduler.get("prediction_type", "epsilon")
    if kind not in names:
        raise UserError(
            f"the scheduler's prediction_type is {kind!r}; diffpo trains {' and '.join(names)} models of this family"
        )
    table = DDPMScheduler.from_config(scheduler).alphas_cumprod
    return DiscreteProcess(
        prediction=names[kind],  # pyright: ignore[reportArgumentType]
        alphas_cumprod=table,
        offset=int(scheduler.get("steps_offset", 0)),
        clean_abar=1.0 if scheduler.get("set_alpha_to_one", True) else None,
        time=time,
    )


def images_only(fn: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Run an image network `[b c h w]` on latents `[b c 1 h w]`."""
    assert z.shape[2] == 1, f"this family takes images; got {z.shape[2]} frames"
    return fn(z.squeeze(2)).unsqueeze(2)
