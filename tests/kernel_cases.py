"""Each kernel of `diffpo.models.kernels` beside what it stands for in torch: on a card, or interpreted on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffpo.models.kernels import Added, Doubled, Geglu, GroupNorm, LayerNorm

ROUNDING = 0.01
"""What half precision leaves of an answer or a gradient, as a share of it."""
Answers = Tensor | tuple[Tensor, ...]
Case = tuple[Callable[..., Answers], Callable[..., Answers], list[Tensor]]
"""The kernel, the same in torch, and what both are given."""


def check(ours: Callable[..., Answers], theirs: Callable[..., Answers], inputs: Sequence[Tensor]) -> None:
    """Compare answers, and gradients through all of them, with torch's in float64."""
    found = []
    for call, dtype in ((ours, None), (theirs, torch.float64)):
        given = [x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs]
        answers = call(*given)
        answers = (answers,) if isinstance(answers, Tensor) else answers
        pulls = [torch.randn(a.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7)) for a in answers]
        pulls = [pull.to(answer) for pull, answer in zip(pulls, answers, strict=True)]
        found.append([*answers, *torch.autograd.grad(answers, given, pulls)])
    for a, b in zip(*found, strict=True):
        error = (a.double() - b.double()).norm()
        assert error <= ROUNDING * b.double().norm() + 1e-5  # a shift may have no say at all


def numbers(*shape: int, like: Tensor, seed: int = 1, mean: float = 0.0, single: bool = False) -> Tensor:
    """Random numbers with the device of a tensor, and its dtype; images lie with their channels last."""
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + mean
    made = made.to(like.device, torch.float32 if single else like.dtype)
    return made.contiguous(memory_format=torch.channels_last) if made.ndim == 4 else made


def group_norm(like: Tensor, n: int, c: int, side: int, groups: int, silu: bool) -> Case:
    """Images that are handed on, and their norm after a shift."""

    def ours(x: Tensor, shift: Tensor, w: Tensor, b: Tensor) -> Answers:
        return GroupNorm.apply(x, shift, w, b, groups, 1e-5, silu)

    def theirs(x: Tensor, shift: Tensor, w: Tensor, b: Tensor) -> Answers:
        normed = F.group_norm(x + shift[:, :, None, None], groups, w, b, 1e-5)
        return x, F.silu(normed) if silu else normed

    x = numbers(n, c, side, side, like=like, mean=2)
    w, b, shift = (numbers(*shape, like=like, seed=k, single=True) for k, shape in enumerate([(c,), (c,), (n, c)]))
    return ours, theirs, [x, shift, w, b]


def layer_norm(like: Tensor, rows: int, width: int) -> Case:
    """A sum and its norm."""

    def ours(x: Tensor, added: Tensor, w: Tensor, b: Tensor) -> Answers:
        return LayerNorm.apply(x, added, w, b, 1e-5)

    def theirs(x: Tensor, added: Tensor, w: Tensor, b: Tensor) -> Answers:
        return x + added, F.layer_norm(x + added, (width,), w, b)

    x, added = numbers(rows, width, like=like, mean=1), numbers(rows, width, like=like, seed=2)
    w, b = (numbers(width, like=like, seed=seed, single=True) for seed in (3, 4))
    return ours, theirs, [x, added, w, b]


def layer_norm_alone(like: Tensor, rows: int, width: int) -> Case:
    """The norm of what nothing is added to, and which is not asked for again."""
    _, _, (x, _, w, b) = layer_norm(like, rows, width)
    return (
        lambda x, w, b: LayerNorm.apply(x, None, w, b, 1e-5)[1],
        lambda x, w, b: F.layer_norm(x, (width,), w, b),
        [x, w, b],
    )


def geglu(like: Tensor, rows: int, width: int) -> Case:
    """A gate after a bias."""

    def theirs(x: Tensor, bias: Tensor) -> Answers:
        value, gate = (x + bias).chunk(2, -1)
        return value * F.gelu(gate)

    return (
        lambda x, bias: Geglu.apply(x, bias),
        theirs,
        [numbers(rows, 2 * width, like=like), numbers(2 * width, like=like, seed=2, single=True)],
    )


def geglu_alone(like: Tensor, rows: int, width: int) -> Case:
    """A gate of what has its bias already."""
    _, theirs, (x, bias) = geglu(like, rows, width)
    return lambda x: Geglu.apply(x, None), lambda x: theirs(x, torch.zeros_like(bias)), [x]


def added(like: Tensor, n: int, c: int, side: int) -> Case:
    """A bias and other images."""
    x, other = (numbers(n, c, side, side + 1, like=like, seed=seed) for seed in (1, 2))
    return (
        lambda x, bias, other: Added.apply(x, bias, other),
        lambda x, bias, other: x + bias[:, None, None] + other,
        [x, numbers(c, like=like, seed=3, single=True), other],
    )


def doubled(like: Tensor, n: int, c: int, side: int) -> Case:
    """Twice the cells a side."""
    x = numbers(n, c, side, side + 1, like=like)
    return lambda x: Doubled.apply(x), lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"), [x]
