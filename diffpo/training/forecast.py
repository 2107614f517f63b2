"""What an update takes, told before anything is downloaded: memory by part, floating-point operations, launches.

The step is run on the meta device (`tracing`), once at each of two batch sizes with and without gradient checkpointing:
between them memory is a straight line in the pairs per forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from diffpo.core.inversion import Inversion
from diffpo.core.method import Method
from diffpo.core.step import preference_step
from diffpo.core.types import Condition, Pair, PairBatch, Rng
from diffpo.errors import UserError
from diffpo.models.base import Denoiser
from diffpo.models.outline import Outline, assemble, looking
from diffpo.models.recomputing import recompute
from diffpo.models.reference import Reference
from diffpo.models.tuning import Tuning
from diffpo.models.user_adapter import is_adapters
from diffpo.training.tracing import Halving, Ledger


@dataclass(frozen=True)
class Weights:
    """Bytes that lie in memory whatever the batch."""

    policy: int
    reference: int
    """Of a reference with weights of its own."""
    gradients: int
    optimizer: int
    parameters: int
    """Number of the network's own, adapters left out."""
    trained: int
    """Number of those that the optimizer changes."""

    @property
    def resting(self) -> int:
        """Bytes between two updates, when there are no gradients."""
        return self.policy + self.reference + self.optimizer


@dataclass(frozen=True)
class Traced:
    """What one step on some pairs takes."""

    pairs: int
    kept: int
    """Bytes of activations when the forward has ended."""
    kept_compiled: int
    """The same if blocks are compiled, estimated by what inductor computes again."""
    peak: int
    """Most bytes at a time, beyond `Weights.resting`; gradients are in it."""
    flops: int
    """Of the step, with what checkpointing computes again."""
    reference_flops: int
    """Of the reference's forward."""
    launches: int
    """Operations that a GPU is given."""

    def peak_if(self, compiled: bool) -> int:
        """The peak, perhaps of compiled blocks."""
        return self.peak - self.kept + self.kept_compiled if compiled else self.peak


class Counted(Reference):
    """A reference that adds up what its forwards cost."""

    def __init__(self, inner: Reference, ledger: Ledger):
        """Count the calls of `inner` that happen while `ledger` is open."""
        super().__init__(inner.denoiser)
        self.inner, self.ledger, self.flops = inner, ledger, 0

    def predict(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        before = self.ledger.flops
        answer = self.inner.predict(z, t, cond)
        self.flops += self.ledger.flops - before
        return answer


def size(*networks: nn.Module) -> int:
    """Bytes of the weights and tables of some networks, what they share counted once."""
    held = {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for n in networks for x in tensors(n)}
    return sum(held.values())


def tensors(network: nn.Module) -> Iterator[Tensor]:
    """Weights and tables."""
    yield from network.parameters()
    yield from network.buffers()


def weigh(policy: Denoiser, reference: Reference | None, optimizer: str) -> Weights:
    """Count what lies in memory whatever the batch; `optimizer` is its name in the config."""
    own = size(policy.network)
    both = own if reference is None else size(policy.network, reference.denoiser.network)
    trained = [p for p in policy.network.parameters() if p.requires_grad]
    named = policy.network.named_parameters()
    parameters = sum(p.numel() for name, p in named if ".lora_" not in name and not is_adapters(name))
    state = sum(OPTIMIZER_BYTES[optimizer](p) for p in trained)
    gradients = sum(p.numel() * p.element_size() for p in trained)
    return Weights(own, both - own, gradients, state, parameters, sum(p.numel() for p in trained))


def _factored(p: Tensor) -> int:
    """Adafactor keeps means over the last and over the last but one dimension."""
    return 4 * (p.numel() // p.shape[-1] + p.numel() // p.shape[-2]) if p.ndim > 1 else 4 * p.numel()


OPTIMIZER_BYTES = {
    "adamw": lambda p: 2 * p.numel() * p.element_size(),
    "adamw8bit": lambda p: 2 * p.numel() if p.numel() >= 4096 else 8 * p.numel(),
    "adafactor": _factored,
}
"""What an optimizer keeps of a weight, by its name in the config."""


def pairs_of(drawn: Outline, count: int, sides: tuple[str, ...]) -> PairBatch:
    """A batch of `count` pairs on the meta device; what is looked at, labels and masks, is real."""
    latent = {side: torch.empty(count, *drawn.latent, device="meta") for side in sides}
    return labelled(latent, drawn.cond.map(lambda x: x.expand(count, *x.shape[1:]).clone()))


def labelled(latent: Mapping[str, Tensor], cond: Condition) -> PairBatch:
    """Pairs of latents `[b c f h w]` by side, one condition for the sides that are there, and hard labels."""
    count, _, frames = next(iter(latent.values())).shape[:3]
    both = ("chosen", "rejected")
    return PairBatch(
        Pair(*(latent.get(side) for side in both)),
        Pair(*(cond if side in latent else None for side in both)),
        torch.ones(count),
        torch.arange(count),
        segments=torch.ones(count, frames, dtype=torch.long),
    )


def trace(
    policy: Denoiser,
    reference: Reference | None,
    method: Method,
    batch: PairBatch,
    half: torch.dtype | None,
    recomputed: float = 0.0,
) -> Traced:
    """Run one step on the meta device, forward and backward.

    Args:
        policy: On the meta device, as is what follows.
        reference: None where the method needs none.
        method: Whose step it is; inversions are left out (see `inverted`).
        batch: See `pairs_of`.
        half: What autocast computes in; None: there is no autocast.
        recomputed: Share of the blocks that gradient checkpointing recomputes; 0: there is none.

    Raises:
        UserError: The network makes numbers of its own, or looks at some, which the meta device has not.
    """
    method = without_inversion(method)
    if recomputed:  # under autocast, too, which is over when the backward begins
        recompute(policy.network, policy.blocks, recomputed, lambda: Halving(half))
    networks = [policy.network, *([] if reference is None else [reference.denoiser.network])]
    told = [c for c in batch.cond if c is not None]
    given = [x for x in batch.latent if x is not None] + [x for c in told for x in (c.text, c.pooled) if x is not None]
    ledger = Ledger([*given, *(x for network in networks for x in tensors(network))])
    judge = None if reference is None else Counted(reference, ledger)
    try:
        with noted(policy, networks, ledger), ledger:
            with looking(), Halving(half):
                loss = preference_step(method, policy, judge, batch, Rng(0, 0, batch.index)).loss.sum()
            kept, compiled = ledger.live, ledger.kept_if_compiled()
            loss.backward()
    except (RuntimeError, NotImplementedError) as error:
        if "meta" not in str(error):
            raise
        raise UserError(
            f"what a {type(policy).pipelines[0]} takes cannot be told without its numbers ({error}). Train it for a "
            "few updates instead, with train.steps=3: metrics.jsonl then holds time/pairs_per_second and "
            "time/peak_memory_gib"
        ) from error
    answered = 0 if judge is None else judge.flops
    return Traced(batch.size, kept, compiled, ledger.peak, ledger.flops, answered, ledger.launches)


@contextmanager
def noted(policy: Denoiser, networks: list[nn.Module], ledger: Ledger) -> Iterator[None]:
    """Tell the ledger which block is at work, while this lasts."""
    blocks = [m for network in networks for m in network.modules() if type(m).__name__ in policy.blocks]
    handles = [block.register_forward_pre_hook(lambda *_: ledger.enter_block()) for block in blocks]
    handles += [block.register_forward_hook(lambda *_: ledger.leave_block()) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def without_inversion(method: Method) -> Method:
    """The same method with random noise: an inversion keeps nothing, and its forwards are counted by `inverted`."""
    settings, known = {field.name for field in fields(method)}, method
    return replace(known, inversion=None) if "inversion" in settings else known


def inverted(inversion: Inversion | None) -> float:
    """Forwards over one image that inverting a pair takes, on average."""
    return 0.0 if inversion is None or inversion.cache else inversion.rows


def forecast(
    drawn: Outline,
    tuning: Tuning,
    method: Method,
    pairs: int,
    *,
    dtype: torch.dtype,
    half: torch.dtype | None,
    optimizer: str,
) -> tuple[Weights, Traced]:
    """Assemble a model on the meta device and trace a step of some pairs."""
    policy, reference = assemble(drawn, tuning, dtype, autocast=half)
    used = reference if method.needs_reference else None
    weights = weigh(policy, used, optimizer)
    recomputed = tuning.recomputed_share if tuning.gradient_checkpointing else 0.0
    return weights, trace(policy, used, method, pairs_of(drawn, pairs, method.sides), half, recomputed)
