"""What is done to networks of any family: casting, compiling, counting calls of sharded ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
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


def largest_among_shards(network: nn.Module, n: int) -> int:
    """Return the largest n over the processes among which a network is sharded, or n where it is whole."""
    parameter = next(network.parameters())
    if not isinstance(parameter, DTensor):
        return n
    most = torch.tensor(n, device=parameter.device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return int(most)


GRAPHS = 512
"""Graphs that torch may keep for a class of blocks: more than any network has kinds of blocks, times batch sizes."""


def _with_room(compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a compiled block where torch keeps enough graphs.

    All blocks of a class share one code object, for which torch keeps 8 graphs; what needs a ninth it runs uncompiled,
    for good. A UNet has more kinds of blocks than that. The limit belongs to the thread, and gradient checkpointing
    recomputes in threads of its own, so it is raised where the block is called.
    """
    config = torch._dynamo.config
    if config.cache_size_limit < GRAPHS:
        config.cache_size_limit = config.accumulated_cache_size_limit = GRAPHS
    return compiled(*args, **kwargs)


def compile_blocks(network: nn.Module, kinds: Sequence[str]) -> None:
    """Compile the blocks of some classes in place."""
    for module in network.modules():
        if type(module).__name__ in kinds:
            module.compile()
            module._compiled_call_impl = partial(_with_room, module._compiled_call_impl)
