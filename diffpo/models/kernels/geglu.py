"""GEGLU: one half of the last axis times the GELU of the other, one pass forward and one backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffpo.models.kernels.language import jit, tl, triton


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
