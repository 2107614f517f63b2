"""Images between convolutions: a bias and what is added with it, and twice as many cells a side.

Images lie with their channels last, `[n p c]` with p = h w.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffpo.models.kernels.language import cdiv, jit, tl

TILE = {"BP": 64, "BC": 64}
"""Cells and channels that one program looks at."""


def _images_like(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _grid(cells: int, channels: int) -> tuple[int, int]:
    return cdiv(cells, TILE["BP"]), cdiv(channels, TILE["BC"])


@jit
def _add(x, bias, added, y, cells, channels, BP: tl.constexpr, BC: tl.constexpr):
    p, c = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP), tl.program_id(1) * BC + tl.arange(0, BC)
    there = c < channels
    mask = (p < cells)[:, None] & there[None, :]
    place = p[:, None] * channels + c[None, :]
    # the bias is rounded as the convolution would have rounded it
    b = tl.load(bias + c, mask=there, other=0.0).to(x.dtype.element_ty).to(tl.float32)
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) + b[None, :]
    value += tl.load(added + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + place, value.to(y.dtype.element_ty), mask=mask)


@jit
def _double(x, y, cells, channels, side, BP: tl.constexpr, BC: tl.constexpr):
    p, c = tl.program_id(0) * BP + tl.arange(0, BP), tl.program_id(1) * BC + tl.arange(0, BC)
    mask = (p < cells)[:, None] & (c < channels)[None, :]
    corner = (p // side).to(tl.int64) * 4 * side + p % side * 2
    p = p.to(tl.int64)
    value = tl.load(x + p[:, None] * channels + c[None, :], mask=mask, other=0.0)
    first = y + corner[:, None] * channels + c[None, :]
    below = first + 2 * side * channels
    tl.store(first, value, mask=mask)
    tl.store(first + channels, value, mask=mask)
    tl.store(below, value, mask=mask)
    tl.store(below + channels, value, mask=mask)


@jit
def _double_backward(dy, dx, cells, channels, side, BP: tl.constexpr, BC: tl.constexpr):
    p, c = tl.program_id(0) * BP + tl.arange(0, BP), tl.program_id(1) * BC + tl.arange(0, BC)
    mask = (p < cells)[:, None] & (c < channels)[None, :]
    corner = (p // side).to(tl.int64) * 4 * side + p % side * 2
    p = p.to(tl.int64)
    first = dy + corner[:, None] * channels + c[None, :]
    below = first + 2 * side * channels
    value = tl.load(first, mask=mask, other=0.0).to(tl.float32)
    value += tl.load(first + channels, mask=mask, other=0.0).to(tl.float32)
    value += tl.load(below, mask=mask, other=0.0).to(tl.float32)
    value += tl.load(below + channels, mask=mask, other=0.0).to(tl.float32)
    tl.store(dx + p[:, None] * channels + c[None, :], value.to(dx.dtype.element_ty), mask=mask)


class Added(torch.autograd.Function):
    """What a convolution without its bias answers, its bias, and other images, rounded once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, added: Tensor) -> Tensor:
        """Add x `[n c h w]`, the bias `[c]` and other images."""
        x, added = (each.contiguous(memory_format=torch.channels_last) for each in (x, added))
        n, channels, h, w = x.shape
        y = torch.empty_like(x)
        _add[_grid(n * h * w, channels)](x, bias, added, y, n * h * w, channels, **TILE)
        ctx.bias_dtype = bias.dtype
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Gradients of x, the bias and the images: what came, its sum, and what came."""
        dy = grads[0].contiguous(memory_format=torch.channels_last)
        dbias = dy.sum((0, 2, 3), dtype=torch.float32).to(ctx.bias_dtype) if ctx.needs_input_grad[1] else None
        return dy, dbias, dy


class Doubled(torch.autograd.Function):
    """Images with each cell four times, as `interpolate` by a factor of 2, nearest, makes them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Double the sides of x `[n c h w]`."""
        x = x.contiguous(memory_format=torch.channels_last)
        n, channels, h, w = x.shape
        y = _images_like(x, (n, channels, 2 * h, 2 * w))
        _double[_grid(n * h * w, channels)](x, y, n * h * w, channels, w, **TILE)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """The gradient of x: the sum of what its four cells are given."""
        dy = grads[0].contiguous(memory_format=torch.channels_last)
        n, channels, h, w = dy.shape[0], dy.shape[1], dy.shape[2] // 2, dy.shape[3] // 2
        dx = _images_like(dy, (n, channels, h, w))
        _double_backward[_grid(n * h * w, channels)](dy, dx, n * h * w, channels, w, **TILE)
        return dx
