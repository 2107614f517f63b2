"""Compare the kernels of `diffpo.models.kernels`, and layers with low-rank adapters, with torch on a GPU; time them.

python scripts/bench_fused.py            # wants a GPU with Triton; ten seconds
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from bench_kernels import seconds
from torch import Tensor

from diffpo.models.kernels import Added, Doubled, Geglu, GroupNorm, LayerNorm
from diffpo.models.low_rank import LowRank

Answers = tuple[Tensor, ...]
IMAGES = ((32, 320, 64), (32, 960, 64), (32, 1280, 16), (8, 320, 128), (3, 2560, 8))
ROWS = ((131072, 320), (8192, 1280), (1001, 640))
RANK = 16


def like(x: Tensor) -> dict[str, Any]:
    """Device and dtype of a tensor."""
    return {"device": x.device, "dtype": x.dtype}


def error(ours: Tensor, theirs: Tensor) -> float:
    """Norm of the difference, as a share of the norm."""
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm().clamp(min=1e-12))


def compare(
    name: str, ours: Callable[..., Answers], theirs: Callable[..., Answers], inputs: list[Tensor], most: float
) -> bool:
    """Print the errors of answers and their gradients, and the times of both; whether all errors are small."""
    answers, gradients, times = [], [], []
    for call in (ours, theirs):
        given = [x.detach().requires_grad_() for x in inputs]

        torch.manual_seed(0)
        pulls = [torch.randn(answer.shape, **like(answer)) for answer in call(*given)]

        def both(
            call: Callable[..., Answers] = call, given: list[Tensor] = given, pulls: list[Tensor] = pulls
        ) -> tuple[Answers, Any]:
            answer = call(*given)
            return answer, torch.autograd.grad(answer, given, pulls)

        answer, found = both()
        answers.append([each.detach() for each in answer])
        gradients.append(found)
        times.append(seconds(both, inputs[0].device))
    errors = [error(a, b) for ours_theirs in (answers, gradients) for a, b in zip(*ours_theirs, strict=True)]
    small = max(errors) < most
    told = " ".join(f"{each:.1e}" for each in errors)
    print(
        f"{'ok ' if small else 'BAD'} {name}: {told}; {times[0] * 1e3:.2f} ms, torch {times[1] * 1e3:.2f} ms",
        flush=True,
    )
    return small


def images(n: int, c: int, side: int) -> bool:
    """Compare what stands between convolutions, on so many images."""
    half = {"device": "cuda", "dtype": torch.bfloat16}
    x, other = (torch.randn(n, c, side, side, **half).to(memory_format=torch.channels_last) for _ in range(2))
    shift, w, b = torch.randn(n, c, device="cuda"), torch.randn(c, device="cuda"), torch.randn(c, device="cuda")

    def norm(x: Tensor, shift: Tensor, w: Tensor, b: Tensor) -> Answers:
        return GroupNorm.apply(x, shift, w, b, 32, 1e-5, True)  # pyright: ignore

    def plain_norm(x: Tensor, shift: Tensor, w: Tensor, b: Tensor) -> Answers:
        return x, F.silu(F.group_norm(x.float() + shift[:, :, None, None], 32, w, b, 1e-5)).to(x.dtype)

    def added(x: Tensor, b: Tensor, other: Tensor) -> Answers:
        return (Added.apply(x, b, other),)  # pyright: ignore

    def plain_added(x: Tensor, b: Tensor, other: Tensor) -> Answers:
        return (x + b.to(x.dtype)[:, None, None] + other,)

    def doubled(x: Tensor) -> Answers:
        return (Doubled.apply(x),)  # pyright: ignore

    def plain_doubled(x: Tensor) -> Answers:
        return (F.interpolate(x.float(), scale_factor=2.0, mode="nearest").to(x.dtype),)

    size = f"{n}x{c}x{side}"
    good = compare(f"group norm, silu {size}", norm, plain_norm, [x + 1, shift, w, b], 1e-2)
    good &= compare(f"bias and other images {size}", added, plain_added, [x, b, other], 1e-2)
    return compare(f"doubled {size}", doubled, plain_doubled, [x], 1e-2) and good


def states(rows: int, width: int) -> bool:
    """Compare what stands between the products of transformers, on so many states."""
    half = {"device": "cuda", "dtype": torch.bfloat16}
    x, other, gated = (torch.randn(rows, size, **half) for size in (width, width, 8 * width))
    w, b, bias = (torch.randn(size, device="cuda") for size in (width, width, 8 * width))

    def norm(x: Tensor, other: Tensor, w: Tensor, b: Tensor) -> Answers:
        return LayerNorm.apply(x, other, w, b, 1e-5)  # pyright: ignore

    def plain_norm(x: Tensor, other: Tensor, w: Tensor, b: Tensor) -> Answers:
        return x + other, F.layer_norm((x + other).float(), x.shape[-1:], w, b, 1e-5).to(x.dtype)

    def gate(x: Tensor, bias: Tensor) -> Answers:
        return (Geglu.apply(x, bias),)  # pyright: ignore

    def plain_gate(x: Tensor, bias: Tensor) -> Answers:
        value, opening = (x + bias.to(x.dtype)).chunk(2, -1)
        return (value * F.gelu(opening),)

    good = compare(f"sum and layer norm {rows}x{width}", norm, plain_norm, [x, other, w, b], 1e-2)
    return compare(f"bias and geglu {rows}x{width * 4}", gate, plain_gate, [gated, bias], 1e-2) and good


def adapted(rows: int, width: int) -> bool:
    """Compare a layer and its adapter as one function with PEFT's modules, and with products left to autograd."""
    half = {"device": "cuda", "dtype": torch.bfloat16}
    x, w, bias = (torch.randn(size, **half) for size in ((rows, width), (width, width), (width,)))
    a, b = (torch.randn(size, device="cuda") for size in ((RANK, width), (width, RANK)))

    def function(x: Tensor, a: Tensor, b: Tensor) -> Answers:
        return (LowRank.apply(x, w, bias, a, b, 0.5),)  # pyright: ignore

    def modules(x: Tensor, a: Tensor, b: Tensor) -> Answers:
        return (F.linear(x, w, bias) + F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype)) * 0.5,)

    def products(x: Tensor, a: Tensor, b: Tensor) -> Answers:
        return (F.linear(x, w, bias).addmm_(F.linear(x, a.to(x.dtype)), b.to(x.dtype).t(), alpha=0.5),)

    good = compare(f"adapted layer, by modules {rows}x{width}", function, modules, [x, a, b], 2e-2)
    return compare(f"adapted layer, by products {rows}x{width}", function, products, [x, a, b], 2e-2) and good


def main() -> int:
    """Compare everything; 1 if something is wrong."""
    torch.manual_seed(0)
    good = [images(*size) for size in IMAGES] + [states(*size) for size in ROWS] + [adapted(*size) for size in ROWS]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
