"""What is done to networks of any family: casting, memory layout, counting calls of sharded ones."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def cast(network: Any, dtype: torch.dtype) -> None:
    """Cast a network's floating values in place; what diffusers keeps in float32 stays at least that."""
    kept = network._keep_in_fp32_modules or ()
    for name, value in chain(network.named_parameters(), network.named_buffers()):
        if value.is_floating_point():
            whole = any(part in name for part in kept)
            value.data = value.data.to(torch.promote_types(dtype, torch.float32) if whole else dtype)


def halve_products(network: Any, dtype: torch.dtype) -> None:
    """Store the weights of linear layers and convolutions of a frozen network in half precision, in place.

    Under autocast to `dtype` they are rounded to it in every call, so that all answers stay the same to the last bit.
    Norms and tables are used as they are, and keep their dtype; so does what diffusers keeps in float32.
    """
    kept = network._keep_in_fp32_modules or ()
    for name, module in network.named_modules():
        whole = any(part in name for part in kept)
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and not whole:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)


def channels_last(network: nn.Module) -> None:
    """Let the weights of convolutions lie in memory with their channels last, in place."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


def lean_adapters(network: nn.Module) -> None:
    """Let adapters take their inputs as they come: autocast would round back what peft raises to float32 for them."""
    from peft.tuners.lora import LoraLayer

    for module in network.modules():
        if isinstance(module, LoraLayer) and all(isinstance(x, nn.Identity) for x in module.lora_dropout.values()):
            module.cast_input_dtype_enabled = False


def largest_among_shards(network: nn.Module, n: int) -> int:
    """Return the largest n over the processes among which a network is sharded, or n where it is whole."""
    parameter = next(network.parameters())
    if not isinstance(parameter, DTensor):
        return n
    most = torch.tensor(n, device=parameter.device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return int(most)
