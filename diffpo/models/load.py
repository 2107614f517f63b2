"""From a diffusers folder or Hub id to a policy and its reference."""

from __future__ import annotations

from typing import Any

import torch

from diffpo.core.types import DTYPES, Embedding
from diffpo.errors import UserError
from diffpo.models import Denoiser
from diffpo.models.networks import lean_adapters
from diffpo.models.pipelines import load_network
from diffpo.models.recomputing import recompute
from diffpo.models.reference import Reference
from diffpo.models.tuning import Tuning


def load(
    tuning: Tuning,
    dtype: torch.dtype,
    needs_reference: bool,
    rate: float | None = None,
    embedding: Embedding | None = None,
    *,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
) -> tuple[Denoiser, Reference | None]:
    """Load the policy, whose trained weights get `dtype`, and its reference, if one is needed.

    Args:
        tuning: What is loaded and trained.
        dtype: Of trained weights.
        needs_reference: Whether to make one.
        rate: Frames per second of clips, where that is not what the family was made for.
        embedding: What users' states are, for a policy that is told the user.
        device: Where both go; the reference is copied there.
        autocast: What autocast makes of products; None: there is no autocast.

    Raises:
        UserError: Files are missing or broken, or a setting does not fit the model.
    """
    base = tuning.find_trained()
    family = base.family
    network = load_network(base.part(base.component), first_dtype(tuning, dtype))
    process = family.within(family.make_process(base.scheduler(tuning.prediction), tuning.time), base.index)
    if tuning.prediction not in (None, process.prediction):
        raise UserError(
            f"model.prediction is {tuning.prediction}, but a {base.pipeline} predicts {process.prediction} and nothing "
            "else: leave model.prediction out"
        )
    equip(network, tuning, family, dtype, embedding, device, autocast)
    policy = family(network, process, 1.0 if tuning.guidance is None else tuning.guidance, rate)
    return policy, tuning.reference(policy, frozen_dtype(tuning, dtype), autocast) if needs_reference else None


def equip(
    network: Any,
    tuning: Tuning,
    family: type[Denoiser],
    dtype: torch.dtype,
    embedding: Embedding | None,
    device: torch.device | str,
    autocast: torch.dtype | None,
) -> None:
    """Give a bare network, which has `first_dtype`, all that it trains with, in place; see `load`."""
    tuning.prepare(network, family, dtype, embedding)
    if tuning.gradient_checkpointing:
        recompute(network, family.blocks, tuning.recomputed_share)
    set_attention(network, tuning.attention)
    network.to(device)
    if autocast is not None and not tuning.trains_base:
        lean_adapters(network)


def frozen_dtype(tuning: Tuning, dtype: torch.dtype) -> torch.dtype:
    """Of frozen weights, where trained ones have `dtype`."""
    return DTYPES[tuning.dtype] if tuning.dtype else dtype


def first_dtype(tuning: Tuning, dtype: torch.dtype) -> torch.dtype:
    """Of a network before anything is added to it, where trained weights have `dtype`."""
    return dtype if tuning.trains_base else frozen_dtype(tuning, dtype)


def set_attention(network: Any, name: str) -> None:
    """Choose the attention implementation, and check that the choice arrived.

    UNets and SD3 choose by attention processor; newer transformers through diffusers' dispatcher, which silently does
    nothing to the others. A `UserError` says if the name is unknown, not installed, or changes nothing.
    """
    if name == "native":  # scaled_dot_product_attention, diffusers' default
        return
    before = _attention_state(network)
    try:
        if name == "xformers":
            network.enable_xformers_memory_efficient_attention()
        else:
            network.set_attention_backend(name)
    except (ValueError, ModuleNotFoundError, ImportError, RuntimeError) as error:
        raise UserError(f"model.attention={name} cannot be used here: {error}") from error
    if _attention_state(network) == before:
        raise UserError(
            f"model.attention={name} changes nothing for a {type(network).__name__}; allowed are native, xformers"
        )


def _attention_state(network: Any) -> list[tuple[str, Any]]:
    processors = (getattr(module, "processor", None) for module in network.modules())
    return [(type(p).__name__, vars(p).get("_attention_backend")) for p in processors if p is not None]
