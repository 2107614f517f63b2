"""Layer norm over the last axis: one pass forward, one backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffpo.models.kernels.language import PROGRAMS, jit, tl, triton


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
