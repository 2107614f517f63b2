"""Triton kernels for what stands between the products of a Stable Diffusion UNet, forward and backward.

Under autocast torch computes norms in float32: it writes the input in float32, the result in float32, its SiLU in
float32, and rounds that for the convolution. Here each of these is one pass that reads half precision, computes in
float32 and writes what the convolution would have rounded: the same arithmetic for a fifth of the memory traffic. No
sum uses atomic additions, so results repeat bit for bit.

Images lie with their channels last, `[n p c]` with p = h w.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
    from triton import jit
except ModuleNotFoundError:  # torch for CPUs comes without it; `fusing.can_fuse` says so

    def jit(kernel: Any) -> Any:  # pyright: ignore
        """Leave a kernel as it is: nobody calls it."""
        return kernel


CHANNELS = 64
"""Channels that one program looks at."""
CELLS = 64
"""Cells of an image that it looks at, at a time."""
PROGRAMS = 1024
"""Programs that keep a large GPU busy."""


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
    x, shift, weight, bias, mean, rstd, group, dy, dx, cells, channels, width, groups,
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
    tl.store(dx + place, out.to(dx.dtype.element_ty), mask=mask)


class GroupNorm(torch.autograd.Function):
    """Group norm of images, after a shift of each channel where one is given, and SiLU after it if asked for."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
    ) -> Tensor:
        """Normalise x `[n c h w]`, whose channels lie last; `shift` is `[n c]`."""
        (n, channels, h, w), width = x.shape, x.shape[1] // groups
        cells, blocks = h * w, triton.cdiv(channels, CHANNELS)
        splits = max(1, min(triton.cdiv(cells, 4 * CELLS), triton.cdiv(PROGRAMS, n * blocks), 32))
        rows = triton.cdiv(cells, splits)
        part = x.new_empty((n, splits, 2, channels), dtype=torch.float32)
        centre = x.new_empty((n, channels), dtype=torch.float32)
        mean, rstd = (x.new_empty((n, groups), dtype=torch.float32) for _ in range(2))
        y, has = torch.empty_like(x), shift is not None
        moved = x if shift is None else shift.contiguous()
        tile = {"BP": CELLS, "BC": CHANNELS}
        small = {"BS": triton.next_power_of_2(splits), "BW": triton.next_power_of_2(width)}
        _sums[n, splits, blocks](x, moved, part, cells, channels, rows, has, **tile)
        _moments[n, groups](x, moved, part, centre, mean, rstd, cells, channels, width, splits, eps, has, **small)
        _normalise[n, triton.cdiv(cells, CELLS), blocks](
            x, moved, weight, bias, mean, rstd, y, cells, channels, width, groups, has, silu, **tile
        )
        ctx.save_for_backward(x, shift, weight, bias, mean, rstd, centre)
        ctx.sizes = (groups, width, cells, splits, rows, blocks, silu, tile, small)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Gradients of x, the shift, the weight and the bias."""
        x, shift, weight, bias, mean, rstd, centre = ctx.saved_tensors
        groups, width, cells, splits, rows, blocks, silu, tile, small = ctx.sizes
        n, channels, has = x.shape[0], x.shape[1], shift is not None
        dy = grads[0].contiguous(memory_format=torch.channels_last)
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
        _backward_input[n, triton.cdiv(cells, CELLS), blocks](
            x, moved, weight, bias, mean, rstd, group, dy, dx, cells, channels, width, groups, has, silu, **tile
        )
        dweight = own[:, 0].sum(0).to(weight.dtype) if ctx.needs_input_grad[2] else None
        dbias = own[:, 1].sum(0).to(bias.dtype) if ctx.needs_input_grad[3] else None
        return dx, (dshift.to(shift.dtype) if has else None), dweight, dbias, None, None, None


@jit
def _layer_norm(x, weight, bias, y, mean, rstd, rows, width, eps, BR: tl.constexpr, BW: tl.constexpr):
    r, c = tl.program_id(0) * BR + tl.arange(0, BR), tl.arange(0, BW)
    mask = (r < rows)[:, None] & (c < width)[None, :]
    place = r.to(tl.int64)[:, None] * width + c[None, :]
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    middle = tl.sum(value, 1) / width
    value = tl.where(mask, value - middle[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, 1) / width + eps)
    w = tl.load(weight + c, mask=c < width, other=0.0).to(tl.float32)
    b = tl.load(bias + c, mask=c < width, other=0.0).to(tl.float32)
    value = value * scale[:, None] * w[None, :] + b[None, :]
    tl.store(y + place, value.to(y.dtype.element_ty), mask=mask)
    tl.store(mean + r, middle, mask=r < rows)
    tl.store(rstd + r, scale, mask=r < rows)


@jit
def _layer_norm_backward(
    x, weight, mean, rstd, dy, dx, part, rows, width, per, WEIGHTS: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr
):
    """Gradient of x for `per` rows, and their sums for the weight's and the bias's."""
    c = tl.arange(0, BW)
    w = tl.load(weight + c, mask=c < width, other=0.0).to(tl.float32)
    first, second = tl.zeros([BW], tl.float32), tl.zeros([BW], tl.float32)
    for start in range(0, per, BR):
        r = tl.program_id(0) * per + start + tl.arange(0, BR)
        there = (r < rows) & (start + tl.arange(0, BR) < per)
        mask = there[:, None] & (c < width)[None, :]
        place = r.to(tl.int64)[:, None] * width + c[None, :]
        scale = tl.load(rstd + r, mask=there, other=0.0)
        middle = tl.load(mean + r, mask=there, other=0.0)
        xhat = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        xhat = tl.where(mask, (xhat - middle[:, None]) * scale[:, None], 0.0)
        given = tl.load(dy + place, mask=mask, other=0.0).to(tl.float32)
        du = given * w[None, :]
        alone, with_xhat = tl.sum(du, 1) / width, tl.sum(du * xhat, 1) / width
        out = scale[:, None] * (du - alone[:, None] - xhat * with_xhat[:, None])
        tl.store(dx + place, out.to(dx.dtype.element_ty), mask=mask)
        if WEIGHTS:
            first += tl.sum(given * xhat, 0)
            second += tl.sum(given, 0)
    if WEIGHTS:
        tl.store(part + tl.program_id(0) * 2 * width + c, first, mask=c < width)
        tl.store(part + tl.program_id(0) * 2 * width + width + c, second, mask=c < width)


class LayerNorm(torch.autograd.Function):
    """Layer norm over the last axis."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Normalise x `[... d]`."""
        x = x.contiguous()
        width, rows = x.shape[-1], x.numel() // x.shape[-1]
        tile = {"BR": max(1, 2048 // triton.next_power_of_2(width)), "BW": triton.next_power_of_2(width)}
        mean, rstd = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
        y = torch.empty_like(x)
        _layer_norm[(triton.cdiv(rows, tile["BR"]),)](x, weight, bias, y, mean, rstd, rows, width, eps, **tile)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.tile = tile
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Gradients of x, the weight and the bias."""
        x, weight, bias, mean, rstd = ctx.saved_tensors
        width, rows, dy = x.shape[-1], x.numel() // x.shape[-1], grads[0].contiguous()
        per = max(ctx.tile["BR"], triton.cdiv(rows, PROGRAMS))
        programs, wanted = triton.cdiv(rows, per), ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        part = x.new_empty((programs if wanted else 1, 2, width), dtype=torch.float32)
        dx = torch.empty_like(x)
        _layer_norm_backward[(programs,)](x, weight, mean, rstd, dy, dx, part, rows, width, per, wanted, **ctx.tile)
        if not wanted:
            return dx, None, None, None
        both = part.sum(0)
        return dx, both[0].to(weight.dtype), both[1].to(bias.dtype), None


@jit
def _geglu(x, y, width, BLOCK: tl.constexpr):
    row, c = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = c < width
    value = tl.load(x + row * 2 * width + c, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(x + row * 2 * width + width + c, mask=mask, other=0.0).to(tl.float32)
    gate = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    gate = gate.to(y.dtype.element_ty).to(tl.float32)  # rounded where torch rounds
    tl.store(y + row * width + c, (value * gate).to(y.dtype.element_ty), mask=mask)


@jit
def _geglu_backward(x, dy, dx, width, BLOCK: tl.constexpr):
    row, c = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = c < width
    value = tl.load(x + row * 2 * width + c, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(x + row * 2 * width + width + c, mask=mask, other=0.0).to(tl.float32)
    given = tl.load(dy + row * width + c, mask=mask, other=0.0).to(tl.float32)
    cdf = 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    pdf = 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    opened = (gate * cdf).to(dx.dtype.element_ty).to(tl.float32)
    passed = (given * value).to(dx.dtype.element_ty).to(tl.float32)
    tl.store(dx + row * 2 * width + c, (given * opened).to(dx.dtype.element_ty), mask=mask)
    slope = (passed * (cdf + gate * pdf)).to(dx.dtype.element_ty)
    tl.store(dx + row * 2 * width + width + c, slope, mask=mask)


class Geglu(torch.autograd.Function):
    """The first half of the last axis times the GELU of the second."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Gate x `[... 2 d]`."""
        x = x.contiguous()
        width, rows = x.shape[-1] // 2, x.numel() // x.shape[-1]
        y = x.new_empty((*x.shape[:-1], width))
        _geglu[rows, triton.cdiv(width, 1024)](x, y, width, BLOCK=1024)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """The gradient of x."""
        (x,), dy = ctx.saved_tensors, grads[0].contiguous()
        width, rows, dx = x.shape[-1] // 2, x.numel() // x.shape[-1], torch.empty_like(x)
        _geglu_backward[rows, triton.cdiv(width, 1024)](x, dy, dx, width, BLOCK=1024)
        return dx
