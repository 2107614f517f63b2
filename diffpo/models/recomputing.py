"""Gradient checkpointing (arXiv:1604.06174) of all repeated blocks of a network, or of some.

A block that is checkpointed keeps its inputs alone, and computes its activations again in the backward pass. Less
memory for more time: where all of it is more than is needed, every second or third block may do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from diffpo.models.user_adapter import still_told

KEPT = "keeps_activations"
"""An attribute of the blocks that are not checkpointed."""


def recompute(
    network: Any,
    kinds: tuple[str, ...],
    share: float,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> None:
    """Checkpoint this share of a network's blocks, spread evenly.

    Args:
        network: The bare network.
        kinds: Names of the classes of its repeated blocks.
        share: 1 for all; other things that diffusers checkpoints are checkpointed in any case.
        around: Makes what stands around every second computation.
    """
    blocks = [module for module in network.modules() if type(module).__name__ in kinds]
    for k, block in enumerate(blocks):
        setattr(block, KEPT, int((k + 1) * share) == int(k * share))

    def run(block: nn.Module, *args: Any) -> Any:
        return block(*args) if getattr(block, KEPT, False) else _again(network, around, block, *args)

    network.enable_gradient_checkpointing(run)


def _again(network: nn.Module, around: Callable[[], AbstractContextManager[Any]], block: nn.Module, *args: Any) -> Any:
    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), _both(around(), still_told(network))

    return checkpoint(block.__call__, *args, use_reentrant=False, context_fn=contexts)


@contextmanager
def _both(one: AbstractContextManager[Any], other: AbstractContextManager[Any]) -> Iterator[None]:
    with one, other:
        yield
