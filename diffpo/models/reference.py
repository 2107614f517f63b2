"""The frozen reference: a copy of the initial network, or the same network with another adapter (or none) switched on.

A reference never sees `cond.user`, whatever the policy is told.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from diffpo.core.process import NoiseProcess
from diffpo.core.types import Condition
from diffpo.models.base import Denoiser
from diffpo.models.networks import cast, halve_products

REFERENCE_ADAPTER = "reference"


class Reference:
    """A denoiser that does not learn: its network is frozen."""

    def __init__(self, denoiser: Denoiser):
        self.denoiser = denoiser

    @property
    def process(self) -> NoiseProcess:
        """The policy's own process."""
        return self.denoiser.process

    def lockstep(self, n: int) -> int:
        return self.denoiser.lockstep(n)

    def predict(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Answer without gradient and without the user's states."""
        with torch.no_grad():
            return self.denoiser.predict(z, t, replace(cond, user=None))


class AdapterReference(Reference):
    """The policy's network with its trained adapter off: no second copy in memory."""

    def __init__(self, policy: Denoiser):
        """Keep the bare module: the loop may put a data-parallel wrapper around the policy's."""
        super().__init__(policy.over(policy.network))

    def predict(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Answer as the network before training would."""
        with initial_adapters(self.denoiser.network):
            return super().predict(z, t, cond)


def frozen_copy(policy: Denoiser, dtype: torch.dtype, autocast: torch.dtype | None = None) -> Reference:
    """Copy the policy's network, in `dtype`, before it learns anything.

    What autocast would round to its own dtype in every call is rounded once; the answers are the same.
    """
    network = copy.deepcopy(policy.network).requires_grad_(False).eval()
    cast(network, dtype)
    denoiser = policy.over(network)  # its inputs keep `dtype`
    if autocast is not None and dtype == torch.float32:
        halve_products(network, autocast)
    return Reference(denoiser)


@contextmanager
def initial_adapters(network: nn.Module) -> Iterator[None]:
    """Switch every adapted layer to its frozen `reference` adapter, or to none, and back.

    Only the two attributes that peft's forward reads are touched: its `enable_adapters` and `set_adapter` also flip
    `requires_grad`, which would take parameters away from an optimizer or a sharded module in the middle of an
    update.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [m for m in network.modules() if isinstance(m, BaseTunerLayer)]
    before = [(layer._disable_adapters, layer._active_adapter) for layer in layers]
    try:
        for layer in layers:
            if REFERENCE_ADAPTER in layer._all_available_adapter_names():
                layer._active_adapter = [REFERENCE_ADAPTER]
            else:
                layer._disable_adapters = True
        yield
    finally:
        for layer, (disabled, active) in zip(layers, before, strict=True):
            layer._disable_adapters, layer._active_adapter = disabled, active
