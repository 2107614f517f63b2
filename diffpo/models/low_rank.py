"""Low-rank adapters of linear layers (LoRA, arXiv:2106.09685, equation 3) whose forward and backward are one function.

    y  = x W^T + b + s (x A^T) B^T
    dx = dy W + s (dy B) A          dA = s (dy B)^T x          dB = s dy^T (x A^T)

PEFT writes the same with modules of their own for A and B. That takes a product, a multiplication by s and an addition
over all of y, the same again in the backward pass, a cast for each gradient, and much Python: a GPU waits for it. Here
a product adds to what is there, and a gradient comes out of its product in the dtype of its parameter. Where B is zero,
the answer is that of the layer without an adapter, to the last bit.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

WIDENING = "dtype" in torch.ops.aten.mm.overloads()
"""Whether this torch can multiply half precision into single precision, on a GPU."""


def fuse_adapters(network: nn.Module) -> None:
    """Replace the calls of PEFT's adapted linear layers, in place; parameters and their names stay.

    Layers that do more than the equation above stay as they are: those with dropout, with DoRA or another variant, with
    a bias in the adapter, and those on a base that is no plain linear layer, that learns, or that has hooks.
    """
    for layer in adapted_layers(network):
        layer.forward = Adapted(layer)


def adapted_layers(network: nn.Module) -> list[Any]:
    """List the layers whose calls `fuse_adapters` replaces."""
    from peft.tuners.lora.layer import Linear

    return [module for module in network.modules() if type(module) is Linear and _is_plain(module)]


def _is_plain(layer: Any) -> bool:
    base = layer.base_layer
    return (
        type(base) is nn.Linear
        and not any(parameter.requires_grad for parameter in base.parameters())
        and not (base._forward_hooks or base._forward_pre_hooks)
        and not (layer.lora_variant or layer.fan_in_fan_out or any(layer.lora_bias.values()))
        and all(isinstance(dropout, nn.Identity) for dropout in layer.lora_dropout.values())
    )


class Adapted:
    """The call of one adapted layer."""

    def __init__(self, layer: Any):
        """Take the place of `layer.forward`."""
        self._layer, self._base = layer, layer.base_layer
        self._factors = {name: (layer.lora_A[name], layer.lora_B[name]) for name in layer.lora_A}

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Answer x `[... in]` as PEFT's layer, with one active adapter or none: `[... out]`."""
        layer, base = self._layer, self._base
        active = [] if layer._disable_adapters else [name for name in layer.active_adapters if name in self._factors]
        if args or kwargs or layer.merged_adapters or len(active) > 1:
            return type(layer).forward(layer, x, *args, **kwargs)
        dtype = product_dtype(x)
        x, weight, bias = _as(x, dtype), _as(base.weight, dtype), base.bias
        bias = bias if bias is None else _as(bias, dtype)
        if not active:  # in rows, as with an adapter, so that both round alike
            return F.linear(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], weight.shape[0])
        first, second = self._factors[active[0]]
        return LowRank.apply(  # pyright: ignore[reportReturnType]
            x, weight, bias, first.weight, second.weight, layer.scaling[active[0]]
        )


def product_dtype(x: Tensor) -> torch.dtype:
    """In what a linear layer multiplies `x`: autocast's dtype, or its own."""
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)


class LowRank(torch.autograd.Function):
    """A frozen linear layer and its adapter, computed in the dtype of `x` and W."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, first: Tensor, second: Tensor, scale: float
    ) -> Tensor:
        """Answer `[... out]`.

        Args:
            ctx: Keeps what the backward needs: of the size of `x` only `x` itself.
            x: `[... in]`.
            weight: `[out in]` W.
            bias: `[out]` b.
            first: `[r in]` A, in any dtype.
            second: `[out r]` B, in any dtype.
            scale: s.
        """
        ctx.scale, ctx.dtypes = scale, (first.dtype, second.dtype)
        first, second = _as(first, x.dtype), _as(second, x.dtype)
        rows = x.reshape(-1, x.shape[-1])
        inner = torch.mm(rows, first.t())
        y = F.linear(rows, weight, bias).addmm_(inner, second.t(), alpha=scale)
        ctx.save_for_backward(x, weight, first, second, inner)
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of `x`, A and B; the layer itself is frozen."""
        x, weight, first, second, inner = ctx.saved_tensors
        wants_x, _, _, wants_first, wants_second, _ = ctx.needs_input_grad
        dy = grads[0].reshape(-1, weight.shape[0])
        within = torch.mm(dy, second)
        dx = da = db = None
        if wants_x:
            dx = torch.mm(dy, weight).addmm_(within, first, alpha=ctx.scale).view(x.shape)
        if wants_first:
            da = _scaled(multiplied(within.t(), x.reshape(-1, x.shape[-1]), ctx.dtypes[0]), ctx.scale)
        if wants_second:
            db = _scaled(multiplied(dy.t(), inner, ctx.dtypes[1]), ctx.scale)
        return dx, None, None, da, db, None


def multiplied(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """`[n k] [k m] -> [n m]` in `dtype`: on a GPU the sum is not rounded to half precision on its way to float32."""
    if WIDENING and a.is_cuda and dtype == torch.float32 and a.dtype != dtype:
        return torch.mm(a, b, out_dtype=dtype)
    return _as(torch.mm(a, b), dtype)


def _scaled(gradient: Tensor, scale: float) -> Tensor:
    return gradient if scale == 1 else gradient.mul_(scale)
