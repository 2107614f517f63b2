"""What the package knows of a model: `predict(z, t, cond)`, and what its family says of everything around the network.

A family is one subclass in one file. That file owns every quirk of the model: layout, time scale, conditioning, the
normalisation of latents. `family` has what most of them do, here is what the network itself is asked for.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from diffpo.core.process import NoiseProcess
from diffpo.core.types import Condition
from diffpo.models.asked import Asked
from diffpo.models.compiling import Compile, compile_modules
from diffpo.models.family import LORA_FILE, Family, Width, images_only
from diffpo.models.low_rank import adapted_layers, fuse_adapters
from diffpo.models.networks import channels_last, largest_among_shards
from diffpo.models.user_adapter import user_adapter

__all__ = ["LORA_FILE", "Asked", "Denoiser", "Width", "images_only"]


class Denoiser(Family):
    """A network behind the one interface that methods use; the class is its family."""

    def __init__(self, network: Any, process: NoiseProcess, guidance: float = 1.0, rate: float | None = None):
        """Remember them. `network` is what accelerate wraps: the loop assigns the wrapped module back.

        Args:
            network: The bare network.
            process: How data becomes noise.
            guidance: What a network that was distilled with guidance is told.
            rate: Frames per second of the clips that it will see; None: those that the family was made for.
        """
        self.network: nn.Module = network
        self.process = process
        self.guidance = guidance
        self.rate = rate or self.fps
        self.config: Mapping[str, Any] = network.config
        self.adapter = user_adapter(network)
        self.dtype: torch.dtype = network.dtype
        """Of the network's weights, but for the few that diffusers keeps in float32: what its inputs are cast to."""
        self.layout: torch.memory_format = torch.contiguous_format
        """How images `[b c h w]` lie in memory on their way through the network."""

    def over(self, network: Any) -> Self:
        """The same over another network of the family."""
        return type(self)(network, self.process, self.guidance, self.rate)

    @final
    def predict(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Answer z `[b c f h w]` at time t `[b]` in the process's own parametrisation, `[b c f h w]`.

        Who the user is, where a condition says so, is told to the network's adapter.
        """
        if self.adapter is None:
            assert cond.user is None, "only a network with a user adapter can be told the user"
            return self.answer(z, t, cond)
        with self.adapter.speaking(cond.user):
            return self.answer(z, t, cond)

    @abstractmethod
    def answer(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Do what `predict` says, for a family: call the network with everything but the user."""

    def regions(self) -> list[nn.Module]:
        """List the parts of the network that regional compilation compiles; none lies in another one."""
        return [module for module in self.network.modules() if type(module).__name__ in self.blocks]

    def compile(self, what: Compile, kept: Path | None = None) -> None:
        """Compile the network in place, or its repeated blocks: those of one class, size and input share a graph.

        Torch keeps what it compiles in the folder `kept`, where one is given.
        """
        compile_modules([self.network] if what == "whole" else self.regions(), self.layout, kept)

    def can_fuse(self, device: torch.device) -> bool:
        """Whether `fuse` makes the network faster on a device: one with low-rank adapters, on a GPU."""
        return device.type == "cuda" and bool(adapted_layers(self.network))

    def fuse(self) -> None:
        """Let fewer and larger operations compute the same, in place: here those of the low-rank adapters."""
        fuse_adapters(self.network)

    def put_channels_last(self) -> None:
        """Let images and weights lie in memory with their channels last; call it before `compile`."""
        self.layout = torch.channels_last
        channels_last(self.network)

    def lockstep(self, n: int) -> int:
        """Return the largest n over the processes among which the network is sharded, or n where it is whole.

        Each call of a sharded network gathers its parameters from all processes: one that called less often would leave
        the others waiting for ever.
        """
        return largest_among_shards(self.network, n)
