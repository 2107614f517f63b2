"""Layer norm over the last axis, and what is added before it: one pass forward, one backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffpo.models.kernels.language import PROGRAMS, cdiv, jit, power_of_2, tl


@jit
def _layer_norm(
    x, added, total, weight, bias, y, mean, rstd, rows, width, eps,
    ADDED: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    r, c = tl.program_id(0) * BR + tl.arange(0, BR), tl.arange(0, BW)
    mask = (r < rows)[:, None] & (c < width)[None, :]
    place = r.to(tl.int64)[:, None] * width + c[None, :]
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    if ADDED:
        value += tl.load(added + place, mask=mask, other=0.0).to(tl.float32)
        value = value.to(total.dtype.element_ty).to(tl.float32)  # the norm is that of the rounded sum, as torch's is
        tl.store(total + place, value.to(total.dtype.element_ty), mask=mask)
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
    x, weight, mean, rstd, dy, along, dx, part, rows, width, per,
    ALONG: tl.constexpr, WEIGHTS: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """Gradient of x for `per` rows, and their sums for the weight's and the bias's."""
    c = tl.arange(0, BW)
    w = tl.load(weight + c, mask=c < width, other=0.0).to(tl.float32)
    first, second = tl.zeros([BR, BW], tl.float32), tl.zeros([BR, BW], tl.float32)
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
        if ALONG:
            out += tl.load(along + place, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx + place, out.to(dx.dtype.element_ty), mask=mask)
        if WEIGHTS:  # the rows of a tile are summed once, after the last tile
            first += given * xhat
            second += given
    if WEIGHTS:
        tl.store(part + tl.program_id(0) * 2 * width + c, tl.sum(first, 0), mask=c < width)
        tl.store(part + tl.program_id(0) * 2 * width + width + c, tl.sum(second, 0), mask=c < width)


class LayerNorm(torch.autograd.Function):
    """A sum, and its layer norm over the last axis.

    The sum is handed on, to what adds it again later: so the gradient that comes back along it is added to the norm's
    in the pass that computes that one.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Add to x `[... d]`, rounded to x's dtype, and normalise that; where nothing is added, the sum is x."""
        x, ctx.added = x.contiguous(), added is not None
        width, rows = x.shape[-1], x.numel() // x.shape[-1]
        columns = power_of_2(width)
        tile = {"BR": max(1, 2048 // columns), "BW": columns}
        mean, rstd = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
        y, total = torch.empty_like(x), torch.empty_like(x) if ctx.added else x
        other = x if added is None else added.contiguous()
        _layer_norm[(cdiv(rows, tile["BR"]),)](
            x, other, total, weight, bias, y, mean, rstd, rows, width, eps, ctx.added, **tile
        )
        ctx.save_for_backward(total, weight, bias, mean, rstd)
        ctx.tile = tile
        ctx.set_materialize_grads(False)
        return total, y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Gradients of x, of what was added (the same one), the weight and the bias."""
        x, weight, bias, mean, rstd = ctx.saved_tensors
        along, dy = grads
        if dy is None:  # nobody asked for the norm
            return along, (along if ctx.added else None), None, None, None
        width, rows, dy = x.shape[-1], x.numel() // x.shape[-1], dy.contiguous()
        per = max(ctx.tile["BR"], cdiv(rows, PROGRAMS))
        programs, wanted = cdiv(rows, per), ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        part = x.new_empty((programs if wanted else 1, 2, width), dtype=torch.float32)
        dx, has = torch.empty_like(x), along is not None
        other = along.contiguous() if has else dy
        _layer_norm_backward[(programs,)](
            x, weight, mean, rstd, dy, other, dx, part, rows, width, per, has, wanted, **ctx.tile
        )
        dadded = dx if ctx.added else None
        if not wanted:
            return dx, dadded, None, None, None
        both = part.sum(0)
        return dx, dadded, both[0].to(weight.dtype), both[1].to(bias.dtype), None
