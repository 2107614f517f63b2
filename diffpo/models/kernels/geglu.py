"""GEGLU: one half of the last axis times the GELU of the other, after a bias: one pass forward and one backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffpo.models.kernels.language import PROGRAMS, cdiv, jit, power_of_2, tl

CELLS = 1024
"""Numbers of each half that a program looks at, at a time."""


@jit
def _load(x, bias, place, c, there, mask, HAS_BIAS: tl.constexpr):
    """Numbers of x with their bias, which is rounded as the product that adds it would have rounded it."""
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        b = tl.load(bias + c, mask=there, other=0.0).to(x.dtype.element_ty)
        value += b.to(tl.float32)[None, :]
    return value


@jit
def _geglu(x, bias, y, rows, width, HAS_BIAS: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr):
    r, c = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR), tl.program_id(1) * BW + tl.arange(0, BW)
    there = c < width
    mask = (r < rows)[:, None] & there[None, :]
    place = r[:, None] * 2 * width + c[None, :]
    value = _load(x, bias, place, c, there, mask, HAS_BIAS)
    gate = _load(x, bias, place + width, c + width, there, mask, HAS_BIAS)
    gate = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    gate = gate.to(y.dtype.element_ty).to(tl.float32)  # rounded where torch rounds
    tl.store(y + r[:, None] * width + c[None, :], (value * gate).to(y.dtype.element_ty), mask=mask)


@jit
def _geglu_backward(
    x, bias, dy, dx, part, rows, width, per,
    HAS_BIAS: tl.constexpr, WEIGHTS: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """Gradient of x for `per` rows, and their sums for the bias's."""
    c = tl.program_id(1) * BW + tl.arange(0, BW)
    there = c < width
    first, second = tl.zeros([BR, BW], tl.float32), tl.zeros([BR, BW], tl.float32)
    for start in range(0, per, BR):
        r = tl.program_id(0).to(tl.int64) * per + start + tl.arange(0, BR)
        mask = ((r < rows) & (start + tl.arange(0, BR) < per))[:, None] & there[None, :]
        place = r[:, None] * 2 * width + c[None, :]
        value = _load(x, bias, place, c, there, mask, HAS_BIAS)
        gate = _load(x, bias, place + width, c + width, there, mask, HAS_BIAS)
        given = tl.load(dy + r[:, None] * width + c[None, :], mask=mask, other=0.0).to(tl.float32)
        cdf = 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
        pdf = 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
        opened = (gate * cdf).to(dx.dtype.element_ty).to(tl.float32)
        passed = (given * value).to(dx.dtype.element_ty).to(tl.float32)
        slope, opened = passed * (cdf + gate * pdf), given * opened
        tl.store(dx + place, opened.to(dx.dtype.element_ty), mask=mask)
        tl.store(dx + place + width, slope.to(dx.dtype.element_ty), mask=mask)
        if WEIGHTS:
            first += opened
            second += slope
    if WEIGHTS:
        out = part + tl.program_id(0) * 2 * width + c
        tl.store(out, tl.sum(first, 0), mask=there)
        tl.store(out + width, tl.sum(second, 0), mask=there)


class Geglu(torch.autograd.Function):
    """The first half of the last axis times the GELU of the second, after a bias where one is given.

    A product that leaves its bias to this kernel needs no pass for the bias's gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None) -> Tensor:
        """Gate x `[... 2 d]`; `bias` is `[2 d]`."""
        x, has = x.contiguous(), bias is not None
        width, rows = x.shape[-1] // 2, x.numel() // x.shape[-1]
        y, columns = x.new_empty((*x.shape[:-1], width)), min(256, power_of_2(width))
        ctx.tile = {"BR": CELLS // columns, "BW": columns}
        grid = (cdiv(rows, ctx.tile["BR"]), cdiv(width, columns))
        _geglu[grid](x, x if bias is None else bias, y, rows, width, has, **ctx.tile)
        ctx.save_for_backward(x, bias)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """The gradients of x and of the bias."""
        (x, bias), dy = ctx.saved_tensors, grads[0].contiguous()
        width, rows, dx = x.shape[-1] // 2, x.numel() // x.shape[-1], torch.empty_like(x)
        wanted, per, blocks = ctx.needs_input_grad[1], ctx.tile["BR"], cdiv(width, ctx.tile["BW"])
        if wanted:  # each program sums as many rows as leave enough programs
            per = max(per, cdiv(rows, cdiv(4 * PROGRAMS, blocks)))
        splits, has = cdiv(rows, per), bias is not None
        part = x.new_empty((splits if wanted else 1, 2 * width), dtype=torch.float32)
        _geglu_backward[splits, blocks](x, bias if has else x, dy, dx, part, rows, width, per, has, wanted, **ctx.tile)
        return dx, part.sum(0).to(bias.dtype) if wanted else None
