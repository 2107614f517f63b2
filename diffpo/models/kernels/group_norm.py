"""Group norm of images, a shift of their channels before it, SiLU after it: two passes forward, two backward.

Images lie with their channels last, `[n p c]` with p = h w.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffpo.models.kernels.language import PROGRAMS, cdiv, jit, power_of_2, tl

CHANNELS = 64
"""Channels that one program looks at."""
CELLS = 64
"""Cells of an image that it looks at, at a time."""


@jit
def _sums(x, shift, part, cells, channels, rows, HAS_SHIFT: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr):
    """Per channel, sums of x - k and of its square over some cells, where k is the channel's first cell."""
    n, s, block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    c = block * BC + tl.arange(0, BC)
    there = c < channels
    image = x + n * cells * channels
    moved = tl.zeros([BC], tl.float32)
    if HAS_SHIFT:
        moved = tl.load(shift + n * channels + c, mask=there, other=0.0).to(tl.float32)
    k = tl.load(image + c, mask=there, other=0.0).to(tl.float32) + moved
    first, second = tl.zeros([BP, BC], tl.float32), tl.zeros([BP, BC], tl.float32)
    for start in range(0, rows, BP):
        p = s * rows + start + tl.arange(0, BP)
        mask = (p < cells)[:, None] & (start + tl.arange(0, BP) < rows)[:, None] & there[None, :]
        value = tl.load(image + p[:, None] * channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
        value = tl.where(mask, value + moved[None, :] - k[None, :], 0.0)
        first += value
        second += value * value
    out = part + ((n * tl.num_programs(1) + s) * 2) * channels + c
    tl.store(out, tl.sum(first, 0), mask=there)
    tl.store(out + channels, tl.sum(second, 0), mask=there)


@jit
def _moments(
    x, shift, part, centre, mean, rstd, cells, channels, width, splits, eps,
    HAS_SHIFT: tl.constexpr, BS: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """Mean and 1 / deviation of each group, and the mean of each channel, from what `_sums` wrote."""
    n, g = tl.program_id(0).to(tl.int64), tl.program_id(1)
    w, s = tl.arange(0, BW), tl.arange(0, BS)
    c = g * width + w
    there = w < width
    place = part + ((n * splits + s[:, None]) * 2) * channels + c[None, :]
    mask = (s < splits)[:, None] & there[None, :]
    first = tl.sum(tl.load(place, mask=mask, other=0.0), 0)
    second = tl.sum(tl.load(place + channels, mask=mask, other=0.0), 0)
    k = tl.load(x + n * cells * channels + c, mask=there, other=0.0).to(tl.float32)
    if HAS_SHIFT:
        k += tl.load(shift + n * channels + c, mask=there, other=0.0).to(tl.float32)
    own = k + first / cells
    whole = tl.sum(tl.where(there, own, 0.0), 0) / width
    spread = tl.where(there, second - first * first / cells + cells * (own - whole) * (own - whole), 0.0)
    variance = tl.sum(spread, 0) / (cells * width)
    tl.store(centre + n * channels + c, own, mask=there)
    tl.store(mean + n * tl.num_programs(1) + g, whole)
    tl.store(rstd + n * tl.num_programs(1) + g, 1.0 / tl.sqrt(variance + eps))


@jit
def _normalise(
    x, shift, weight, bias, mean, rstd, y, cells, channels, width, groups,
    HAS_SHIFT: tl.constexpr, SILU: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    p, c = tl.program_id(1) * BP + tl.arange(0, BP), tl.program_id(2) * BC + tl.arange(0, BC)
    there = c < channels
    mask = (p < cells)[:, None] & there[None, :]
    place = n * cells * channels + p[:, None] * channels + c[None, :]
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    if HAS_SHIFT:
        value += tl.load(shift + n * channels + c, mask=there, other=0.0).to(tl.float32)[None, :]
    centre = tl.load(mean + n * groups + c // width, mask=there, other=0.0)
    scale = tl.load(rstd + n * groups + c // width, mask=there, other=0.0)
    w = tl.load(weight + c, mask=there, other=0.0).to(tl.float32)
    b = tl.load(bias + c, mask=there, other=0.0).to(tl.float32)
    value = (value - centre[None, :]) * scale[None, :] * w[None, :] + b[None, :]
    if SILU:
        value = value * tl.sigmoid(value)
    tl.store(y + place, value.to(y.dtype.element_ty), mask=mask)


@jit
def _backward_sums(
    x, shift, weight, bias, mean, rstd, dy, part, cells, channels, width, groups, rows,
    HAS_SHIFT: tl.constexpr, SILU: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Per channel, sums of du xhat and of du over some cells, where u = w xhat + b is what SiLU is given."""
    n, s, block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    c = block * BC + tl.arange(0, BC)
    there = c < channels
    moved = tl.zeros([BC], tl.float32)
    if HAS_SHIFT:
        moved = tl.load(shift + n * channels + c, mask=there, other=0.0).to(tl.float32)
    centre = tl.load(mean + n * groups + c // width, mask=there, other=0.0)
    scale = tl.load(rstd + n * groups + c // width, mask=there, other=0.0)
    w = tl.load(weight + c, mask=there, other=0.0).to(tl.float32)
    b = tl.load(bias + c, mask=there, other=0.0).to(tl.float32)
    first, second = tl.zeros([BP, BC], tl.float32), tl.zeros([BP, BC], tl.float32)
    for start in range(0, rows, BP):
        p = s * rows + start + tl.arange(0, BP)
        mask = (p < cells)[:, None] & (start + tl.arange(0, BP) < rows)[:, None] & there[None, :]
        place = n * cells * channels + p[:, None] * channels + c[None, :]
        xhat = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) + moved[None, :]
        xhat = (xhat - centre[None, :]) * scale[None, :]
        du = tl.load(dy + place, mask=mask, other=0.0).to(tl.float32)
        if SILU:
            u = xhat * w[None, :] + b[None, :]
            gate = tl.sigmoid(u)
            du = du * gate * (1.0 + u * (1.0 - gate))
        du = tl.where(mask, du, 0.0)
        first += du * xhat
        second += du
    out = part + ((n * tl.num_programs(1) + s) * 2) * channels + c
    tl.store(out, tl.sum(first, 0), mask=there)
    tl.store(out + channels, tl.sum(second, 0), mask=there)


@jit
def _backward_moments(
    part, weight, mean, rstd, centre, own, group, dshift, cells, channels, width, splits,
    HAS_SHIFT: tl.constexpr, BS: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """What `_backward_sums` wrote: summed per channel, weighted per group, and the shift's gradient."""
    n, g = tl.program_id(0).to(tl.int64), tl.program_id(1)
    w, s = tl.arange(0, BW), tl.arange(0, BS)
    c = g * width + w
    there = w < width
    place = part + ((n * splits + s[:, None]) * 2) * channels + c[None, :]
    mask = (s < splits)[:, None] & there[None, :]
    first = tl.sum(tl.load(place, mask=mask, other=0.0), 0)
    second = tl.sum(tl.load(place + channels, mask=mask, other=0.0), 0)
    factor = tl.load(weight + c, mask=there, other=0.0).to(tl.float32)
    tl.store(own + n * 2 * channels + c, first, mask=there)
    tl.store(own + n * 2 * channels + channels + c, second, mask=there)
    with_xhat = tl.sum(factor * first, 0) / (cells * width)
    alone = tl.sum(factor * second, 0) / (cells * width)
    tl.store(group + (n * tl.num_programs(1) + g) * 2, with_xhat)
    tl.store(group + (n * tl.num_programs(1) + g) * 2 + 1, alone)
    if HAS_SHIFT:
        scale = tl.load(rstd + n * tl.num_programs(1) + g)
        middle = tl.load(mean + n * tl.num_programs(1) + g)
        xhat = (tl.load(centre + n * channels + c, mask=there, other=0.0) - middle) * scale
        moved = scale * (factor * second - cells * (alone + xhat * with_xhat))
        tl.store(dshift + n * channels + c, moved, mask=there)


@jit
def _backward_input(
    x, shift, weight, bias, mean, rstd, group, dy, along, dx, cells, channels, width, groups,
    HAS_SHIFT: tl.constexpr, SILU: tl.constexpr, ALONG: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    p, c = tl.program_id(1) * BP + tl.arange(0, BP), tl.program_id(2) * BC + tl.arange(0, BC)
    there = c < channels
    mask = (p < cells)[:, None] & there[None, :]
    place = n * cells * channels + p[:, None] * channels + c[None, :]
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    if HAS_SHIFT:
        value += tl.load(shift + n * channels + c, mask=there, other=0.0).to(tl.float32)[None, :]
    centre = tl.load(mean + n * groups + c // width, mask=there, other=0.0)
    scale = tl.load(rstd + n * groups + c // width, mask=there, other=0.0)
    with_xhat = tl.load(group + (n * groups + c // width) * 2, mask=there, other=0.0)
    alone = tl.load(group + (n * groups + c // width) * 2 + 1, mask=there, other=0.0)
    w = tl.load(weight + c, mask=there, other=0.0).to(tl.float32)
    b = tl.load(bias + c, mask=there, other=0.0).to(tl.float32)
    xhat = (value - centre[None, :]) * scale[None, :]
    du = tl.load(dy + place, mask=mask, other=0.0).to(tl.float32)
    if SILU:
        u = xhat * w[None, :] + b[None, :]
        gate = tl.sigmoid(u)
        du = du * gate * (1.0 + u * (1.0 - gate))
    out = scale[None, :] * (w[None, :] * du - alone[None, :] - xhat * with_xhat[None, :])
    if ALONG:
        out += tl.load(along + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(dx + place, out.to(dx.dtype.element_ty), mask=mask)


class GroupNorm(torch.autograd.Function):
    """Images, and their group norm after a shift of each channel where one is given, with SiLU after it if asked for.

    The images are handed on, to what reads them again later: so the gradient that comes back from there is added to the
    norm's in the pass that computes that one.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
    ) -> tuple[Tensor, Tensor]:
        """Hand on x `[n c h w]`, whose channels lie last, and normalise it; `shift` is `[n c]`."""
        (n, channels, h, w), width = x.shape, x.shape[1] // groups
        cells, blocks = h * w, cdiv(channels, CHANNELS)
        splits = max(1, min(cdiv(cells, 4 * CELLS), cdiv(PROGRAMS, n * blocks), 32))
        rows = cdiv(cells, splits)
        part = x.new_empty((n, splits, 2, channels), dtype=torch.float32)
        centre = x.new_empty((n, channels), dtype=torch.float32)
        mean, rstd = (x.new_empty((n, groups), dtype=torch.float32) for _ in range(2))
        y, has = torch.empty_like(x), shift is not None
        moved = x if shift is None else shift.contiguous()
        tile = {"BP": CELLS, "BC": CHANNELS}
        small = {"BS": power_of_2(splits), "BW": power_of_2(width)}
        _sums[n, splits, blocks](x, moved, part, cells, channels, rows, has, **tile)
        _moments[n, groups](x, moved, part, centre, mean, rstd, cells, channels, width, splits, eps, has, **small)
        _normalise[n, cdiv(cells, CELLS), blocks](
            x, moved, weight, bias, mean, rstd, y, cells, channels, width, groups, has, silu, **tile
        )
        ctx.save_for_backward(x, shift, weight, bias, mean, rstd, centre)
        ctx.sizes = (groups, width, cells, splits, rows, blocks, silu, tile, small)
        ctx.set_materialize_grads(False)
        return x, y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Gradients of x, the shift, the weight and the bias."""
        x, shift, weight, bias, mean, rstd, centre = ctx.saved_tensors
        along, dy = grads
        if dy is None:  # nobody asked for the norm
            return along, None, None, None, None, None, None
        groups, width, cells, splits, rows, blocks, silu, tile, small = ctx.sizes
        n, channels, has = x.shape[0], x.shape[1], shift is not None
        dy = dy.contiguous(memory_format=torch.channels_last)
        other = dy if along is None else along.contiguous(memory_format=torch.channels_last)
        moved = x if shift is None else shift.contiguous()
        part = x.new_empty((n, splits, 2, channels), dtype=torch.float32)
        own = x.new_empty((n, 2, channels), dtype=torch.float32)
        group = x.new_empty((n, groups, 2), dtype=torch.float32)
        dshift = torch.empty_like(centre) if has else centre
        dx = torch.empty_like(x)
        _backward_sums[n, splits, blocks](
            x, moved, weight, bias, mean, rstd, dy, part, cells, channels, width, groups, rows, has, silu, **tile
        )
        _backward_moments[n, groups](
            part, weight, mean, rstd, centre, own, group, dshift, cells, channels, width, splits, has, **small
        )
        _backward_input[n, cdiv(cells, CELLS), blocks](
            x, moved, weight, bias, mean, rstd, group, dy, other, dx, cells, channels, width, groups,
            has, silu, along is not None, **tile,
        )  # fmt: skip
        dweight = own[:, 0].sum(0).to(weight.dtype) if ctx.needs_input_grad[2] else None
        dbias = own[:, 1].sum(0).to(bias.dtype) if ctx.needs_input_grad[3] else None
        return dx, (dshift.to(shift.dtype) if has else None), dweight, dbias, None, None, None
