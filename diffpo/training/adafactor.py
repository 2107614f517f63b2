"""Adafactor (arXiv:1804.04235) as transformers has it, bit for bit, for many tensors at a time.

transformers' own step launches some 25 kernels per tensor one after the other: on a GPU a network of 1,700 tensors
waits for the CPU most of that time. Here torch's foreach operations take a list of tensors at once. The state, and so
the checkpoints, are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from diffpo.compat import ensure_torchvision

ensure_torchvision()

from transformers.optimization import Adafactor  # noqa: E402

ELEMENTS = 2**26
"""Numbers that are updated at a time: a squared gradient of so many is held beside them."""


class ForeachAdafactor(Adafactor):
    """transformers' Adafactor with a learning rate that is given, and no first moment."""

    def __init__(self, parameters: Any, *, lr: float, weight_decay: float):
        """Set it as the Diffusion-DPO authors did for SDXL: nothing scales the learning rate."""
        fixed: dict[str, Any] = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, clip_threshold=1.0, **fixed)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update what has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for some in _alike([p for p in group["params"] if p.grad is not None], self._count):
                self._update(some, group)
        return loss

    def _count(self, parameter: Tensor) -> int:
        """Count one more update of a parameter; the first one makes its state."""
        state = self.state[parameter]
        if not state:
            like = torch.promote_types(parameter.dtype, torch.float32)
            shape = parameter.shape
            state["step"] = 0
            if parameter.ndim > 1:
                state["exp_avg_sq_row"] = parameter.new_zeros(shape[:-1], dtype=like)
                state["exp_avg_sq_col"] = parameter.new_zeros(shape[:-2] + shape[-1:], dtype=like)
            else:
                state["exp_avg_sq"] = parameter.new_zeros(shape, dtype=like)
        state["step"] += 1
        return state["step"]

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Update parameters that have one dtype and device, and have been updated equally often."""
        states = [self.state[p] for p in parameters]
        like, lr = torch.promote_types(parameters[0].dtype, torch.float32), group["lr"]
        decay = 1.0 - math.pow(states[0]["step"], group["decay_rate"])
        gradients = [p.grad.to(like) for p in parameters if p.grad is not None]
        values = [p.to(like) for p in parameters]  # the parameters themselves, unless they are in half precision

        updates = list(torch._foreach_mul(gradients, gradients))
        torch._foreach_add_(updates, group["eps"][0])
        matrix = [k for k, p in enumerate(parameters) if p.ndim > 1]
        vector = [k for k, p in enumerate(parameters) if p.ndim <= 1]
        if matrix:
            rows, columns = ([states[k][f"exp_avg_sq_{name}"] for k in matrix] for name in ("row", "col"))
            _average(rows, [updates[k].mean(-1) for k in matrix], decay)
            _average(columns, [updates[k].mean(-2) for k in matrix], decay)
            factors = torch._foreach_div(rows, [row.mean(-1, keepdim=True) for row in rows])
            torch._foreach_rsqrt_(factors)
            for k, factor, other in zip(matrix, factors, torch._foreach_rsqrt(columns), strict=True):
                torch.mul(factor.unsqueeze(-1), other.unsqueeze(-2), out=updates[k])
        if vector:
            squares = [states[k]["exp_avg_sq"] for k in vector]
            _average(squares, [updates[k] for k in vector], decay)
            for k, root in zip(vector, torch._foreach_rsqrt(squares), strict=True):
                updates[k] = root
        torch._foreach_mul_(updates, gradients)
        norms = torch.stack(torch._foreach_norm(updates, 2))
        roots = torch.tensor([math.sqrt(x.numel()) for x in updates], dtype=like)
        sizes = norms / roots.to(norms.device, non_blocking=True) / group["clip_threshold"]
        torch._foreach_div_(updates, list(sizes.clamp_(min=1.0).unbind()))
        torch._foreach_mul_(updates, lr)
        if group["weight_decay"]:
            torch._foreach_add_(values, values, alpha=-group["weight_decay"] * lr)
        torch._foreach_sub_(values, updates)
        for parameter, value in zip(parameters, values, strict=True):
            if parameter is not value:
                parameter.copy_(value)


def _average(states: list[Tensor], new: list[Tensor], decay: float) -> None:
    torch._foreach_mul_(states, decay)
    torch._foreach_add_(states, new, alpha=1.0 - decay)


def _alike(parameters: list[Tensor], count: Callable[[Tensor], int]) -> Iterator[list[Tensor]]:
    """Cut parameters into lists of one dtype, device and number of updates, of at most `ELEMENTS` numbers or one."""
    lists: dict[Any, list[Tensor]] = {}
    for parameter in parameters:
        lists.setdefault((parameter.dtype, parameter.device, count(parameter)), []).append(parameter)
    for each in lists.values():
        some: list[Tensor] = []
        for parameter in each:
            if some and sum(p.numel() for p in some) + parameter.numel() > ELEMENTS:
                yield some
                some = []
            some.append(parameter)
        yield some
