"""The few values that travel through a training step. Only torch is known here.

Shapes are written `[b c f h w]`: batch, channels, frames (1 for an image), height and width *in latent units*. A pair's
two sides are always called `chosen` and `rejected`, in the order of the table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, TypeVar, get_args

import torch
from torch import Tensor

from diffpo.core.padding import of_one_length

DtypeName = Literal["float32", "float16", "bfloat16", "float64"]
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in get_args(DtypeName)}
"""The dtypes of weights and computations, by the names that configs use."""
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""What autocast makes of products, by the name of the mixed precision."""

T = TypeVar("T")
U = TypeVar("U")
STAGED = 2**16
"""Bytes that CUDA copies at once from any memory; more must be pinned, or the copy waits for what the GPU is doing."""


def moved(x: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """Move to `device` and `dtype`, without waiting for a GPU: it copies when it gets there, while the CPU goes on."""
    device, dtype = torch.device(device), x.dtype if dtype is None else dtype
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device, dtype)
    x = x.to(dtype)
    if x.nbytes > STAGED and not x.is_pinned():
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def moved_to(x: Tensor, like: Tensor) -> Tensor:
    """Move to the device and dtype of another tensor, as `moved` does."""
    return moved(x, like.device, like.dtype)


@dataclass(frozen=True)
class Pair(Generic[T]):
    """Two things of the same kind, one for each side of a preference."""

    chosen: T
    rejected: T

    def map(self, fn: Callable[[T], U]) -> Pair[U]:
        """Apply `fn` to both sides; a side that the method does not use is None and stays None."""
        return Pair(*(None if side is None else fn(side) for side in self))  # pyright: ignore[reportReturnType]

    def swapped(self) -> Pair[T]:
        """Exchange the sides."""
        return Pair(self.rejected, self.chosen)

    def __iter__(self):
        """Iterate over chosen, then rejected."""
        return iter((self.chosen, self.rejected))


@dataclass(frozen=True)
class Embedding:
    """What users' states are: who made them, and how wide they are."""

    embedder: str
    """Names what made the states, with its weights."""
    width: int
    """Numbers in a state."""


@dataclass(frozen=True)
class Condition:
    """All that a denoiser is told besides z and t, one row per image."""

    text: Tensor
    """`[b n d]` text states."""
    pooled: Tensor | None = None
    """`[b d]` pooled text state, for the families that use one."""
    mask: Tensor | None = None
    """`[b n]` true where `text` holds a token, for the families that mask."""
    extra: dict[str, Tensor] = field(default_factory=dict)
    """Per-image values `[b ...]`, such as `size`: original height, width; crop top, left; target height, width.

    A second stream of text states, `[b n d]`, and its mask, called the same with `_mask` behind it, are here too."""
    user: Tensor | None = None
    """`[b n d]` user states, zeros for the null user; a reference never sees them."""

    def map(self, fn: Callable[[Tensor], Tensor]) -> Condition:
        """Apply `fn` to every tensor."""
        return self._combine([self], lambda parts: fn(parts[0]))

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Condition:
        """Move to `device`; floating tensors also to `dtype`. Sizes and masks are integers and stay so."""
        return self.map(lambda x: moved(x, device, dtype if x.is_floating_point() else x.dtype))

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        """Concatenate along the batch; shorter texts are padded with zeros, which the mask hides.

        Where one part has a mask, a part without one holds tokens only. Where none has, all texts have one length: such
        a family attends to every position.
        """
        return Condition._combine(of_one_length(parts), torch.cat)

    @staticmethod
    def cat_pairs(pairs: Sequence[Pair[Condition]]) -> Pair[Condition]:
        """Concatenate each side along the batch; what both sides shared before, such as texts, they share again."""
        joined: list[tuple[list[Tensor], Tensor]] = []

        def join(parts: list[Tensor]) -> Tensor:
            for others, answer in joined:
                if all(x is y for x, y in zip(parts, others, strict=True)):
                    return answer
            joined.append((parts, torch.cat(parts)))
            return joined[-1][1]

        sides = zip(*pairs, strict=True)
        return Pair(*(Condition._combine(of_one_length(side), join) for side in sides))

    @staticmethod
    def stack(parts: Sequence[Condition]) -> Condition:
        """Put parts of one batch size side by side, `[p b ...]`; what they share is not copied."""

        def join(values: list[Tensor]) -> Tensor:
            first = values[0]
            shared = all(value is first for value in values)
            return first.expand(len(values), *first.shape) if shared else torch.stack(values)

        return Condition._combine(of_one_length(parts), join)

    @staticmethod
    def _combine(parts: Sequence[Condition], fn: Callable[[list[Tensor]], Tensor]) -> Condition:
        def join(name: str) -> Tensor | None:
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else fn(values)

        extra = {key: fn([part.extra[key] for part in parts]) for key in parts[0].extra}
        return Condition(fn([p.text for p in parts]), join("pooled"), join("mask"), extra, join("user"))


@dataclass(frozen=True)
class PairBatch:
    """Encoded preference pairs."""

    latent: Pair[Tensor]
    """`[b c f h w]` x0 of each side, scaled as the denoiser expects; None for a side that the method does not use."""
    cond: Pair[Condition]
    preference: Tensor
    """`[b]` P(chosen > rejected) in [0, 1]."""
    index: Tensor
    """`[b]` row numbers in the table, integers: what the random draws depend on."""
    segments: Tensor | None = None
    """`[b f]` in {-1, 0, 1}: which side is better in each latent frame, 1 the chosen one, 0 neither (DenseDPO)."""
    weight: Tensor | None = None
    """`[b]` what the loss of each row is multiplied with; None: nothing."""
    trajectory: Pair[Tensor] | None = None
    """`[b n c f h w]` each image's inversion by the reference, point by point from the clean latent; None: not kept."""
    inverted: Pair[Tensor] | None = None
    """`[b c f h w]` the points that each image was inverted to, at the time that this batch will be learned at; None:
    not yet."""
    reference_error: Pair[Tensor] | None = None
    """`[b f]` the reference's mean squared errors at the very draws that this batch will be learned with; None: the
    reference is asked."""

    @property
    def size(self) -> int:
        """Number of pairs."""
        return len(self.index)

    @property
    def shape(self) -> torch.Size:
        """`[c f h w]` of every latent of the batch."""
        return next(x for x in self.latent if x is not None).shape[1:]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> PairBatch:
        """Move to `device`, floating tensors to `dtype`.

        `index` stays on the CPU, where the random draws are made, and so do the labels: which terms and which branches
        of a loss there are is decided without waiting for the device.
        """
        there: dict[int, Tensor] = {}  # what both sides share is moved once

        def move(x: Tensor) -> Tensor:
            if id(x) not in there:
                there[id(x)] = moved(x, device, dtype if x.is_floating_point() else x.dtype)
            return there[id(x)]

        def sides(each: Pair[Tensor] | None) -> Pair[Tensor] | None:
            return None if each is None else each.map(move)

        return replace(
            self,
            latent=self.latent.map(move),
            cond=self.cond.map(lambda c: c.map(move)),
            trajectory=sides(self.trajectory),
            inverted=sides(self.inverted),
            reference_error=sides(self.reference_error),
        )


@dataclass(frozen=True)
class Noised:
    """Noisy latents and what a perfect network would answer to them."""

    z: Tensor
    """`[b c f h w]` alpha x0 + sigma eps."""
    t: Tensor
    """`[b]` time, in the process's own unit (integers for discrete models, (0, 1) for flow)."""
    alpha: Tensor
    """`[b]`"""
    sigma: Tensor
    """`[b]`"""
    target: Tensor
    """`[b c f h w]` in the model's own parametrisation."""


@dataclass(frozen=True)
class Denoised:
    """A network's answer, beside the question."""

    prediction: Tensor
    """`[b c f h w]`"""
    noised: Noised

    @property
    def difference(self) -> Tensor:
        """`[b c f h w]` prediction - target, in at least float32.

        Half precision is raised first: at beta 2000 the rounding of a half-precision error alone moves the logit by
        about 0.1.
        """
        dtype = torch.promote_types(self.prediction.dtype, torch.float32)
        return self.prediction.to(dtype) - self.noised.target.to(dtype)

    @property
    def error(self) -> Tensor:
        """`[b f]` mean squared error over channels, height and width."""
        return self.difference.square().mean(dim=(1, 3, 4))

    def mixed(self, other: Denoised, there: Tensor) -> Denoised:
        """Take the frames of `other` where `there` `[b f]` is true."""
        where = moved(there, self.prediction.device)[:, None, :, None, None]
        z = torch.where(where, other.noised.z, self.noised.z)
        target = torch.where(where, other.noised.target, self.noised.target)
        prediction = torch.where(where, other.prediction, self.prediction)
        return Denoised(prediction, replace(self.noised, z=z, target=target))


@dataclass(frozen=True)
class Judged:
    """What is left of a frozen network's answer if only its error was kept."""

    error: Tensor
    """`[b f]` as of `Denoised`."""

    def mixed(self, other: Judged, there: Tensor) -> Judged:
        """Take the frames of `other` where `there` `[b f]` is true."""
        return Judged(torch.where(moved(there, self.error.device), other.error, self.error))


@dataclass(frozen=True)
class StepOutput:
    """What a method makes of one micro-batch."""

    loss: Tensor
    """`[b]` sum over the row's terms; the loop divides by the effective batch's number of terms."""
    metrics: dict[str, Tensor]
    """Detached `[b]` values to log, each a sum over the row's terms; but `time` is the relative time of the row."""


class Rng:
    """Random draws that depend on (seed, epoch, row, purpose) alone: not on rank, batch make-up or device.

    Each row of `index` `[b]`, its number in the table, draws from a CPU generator of its own. `purpose` names what the
    numbers are for; where a side or an inversion step has numbers of its own, it names those too.
    """

    def __init__(self, seed: int, epoch: int, index: Tensor):
        self.seed, self.epoch, self.index = seed, epoch, index

    def normal(self, shape: Sequence[int], purpose: str) -> Tensor:
        """Standard normal numbers, `[b, *shape]` float32 on the CPU, the same whatever dtype the computation has."""
        return torch.stack([torch.randn(tuple(shape), generator=g) for g in self._generators(purpose)])

    def uniform(self, purpose: str) -> Tensor:
        """Uniform numbers in [0, 1), `[b]` float64 on the CPU."""
        return torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in self._generators(purpose)])

    def _generators(self, purpose: str) -> list[torch.Generator]:
        generators = []
        for row in self.index.tolist():
            key = f"{self.seed}/{self.epoch}/{row}/{purpose}".encode()
            digest = hashlib.blake2b(key, digest_size=8).digest()
            generators.append(torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1))
        return generators
