"""Compare the kernels of `diffpo.models.kernels` with torch's float32 arithmetic on a GPU, and time them.

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

from diffpo.models.kernels import Geglu, GroupNorm, LayerNorm

IMAGES = ((32, 320, 64), (32, 960, 64), (32, 1280, 16), (8, 320, 128), (3, 2560, 8))
ROWS = ((131072, 320), (8192, 1280), (1001, 640))


def like(x: Tensor) -> dict[str, Any]:
    """Device and dtype of a tensor."""
    return {"device": x.device, "dtype": x.dtype}


def error(ours: Tensor, theirs: Tensor) -> float:
    """Norm of the difference, as a share of the norm."""
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm().clamp(min=1e-12))


def compare(
    name: str, ours: Callable[..., Tensor], theirs: Callable[..., Tensor], inputs: list[Tensor], most: float
) -> bool:
    """Print the errors of an answer and its gradients, and the times of both; whether all errors are small."""
    answers, gradients, times = [], [], []
    for call in (ours, theirs):
        given = [x.detach().requires_grad_() for x in inputs]

        def both(call: Callable[..., Tensor] = call, given: list[Tensor] = given) -> tuple[Tensor, Any]:
            answer = call(*given)
            torch.manual_seed(0)
            return answer, torch.autograd.grad(answer, given, torch.randn(answer.shape, **like(answer)))

        answer, found = both()
        answers.append(answer.detach())
        gradients.append(found)
        times.append(seconds(both, inputs[0].device))
    errors = [error(*answers), *(error(a, b) for a, b in zip(*gradients, strict=True))]
    small = max(errors) < most
    told = " ".join(f"{each:.1e}" for each in errors)
    print(
        f"{'ok ' if small else 'BAD'} {name}: {told}; {times[0] * 1e3:.2f} ms, torch {times[1] * 1e3:.2f} ms",
        flush=True,
    )
    return small


def main() -> int:
    """Compare everything; 1 if something is wrong."""
    torch.manual_seed(0)
    half, good = {"device": "cuda", "dtype": torch.bfloat16}, True
    for n, c, side in IMAGES:
        x = (torch.randn(n, c, side, side, **half) + 1).to(memory_format=torch.channels_last)
        shift, w, b = torch.randn(n, c, device="cuda"), torch.randn(c, device="cuda"), torch.randn(c, device="cuda")

        def ours(x: Tensor, shift: Tensor, w: Tensor, b: Tensor) -> Tensor:
            return GroupNorm.apply(x, shift, w, b, 32, 1e-5, True)  # pyright: ignore

        def theirs(x: Tensor, shift: Tensor, w: Tensor, b: Tensor) -> Tensor:
            return F.silu(F.group_norm(x.float() + shift[:, :, None, None], 32, w, b, 1e-5)).to(x.dtype)

        good &= compare(f"group norm, silu {n}x{c}x{side}", ours, theirs, [x, shift, w, b], 1e-2)
    for rows, width in ROWS:
        x, w, b = torch.randn(rows, width, **half), torch.randn(width, device="cuda"), torch.randn(width, device="cuda")
        good &= compare(
            f"layer norm {rows}x{width}",
            lambda x, w, b: LayerNorm.apply(x, w, b, 1e-5),  # pyright: ignore
            lambda x, w, b: F.layer_norm(x.float(), x.shape[-1:], w, b, 1e-5).to(x.dtype),
            [x, w, b],
            1e-2,
        )
        good &= compare(
            f"geglu {rows}x{width * 4}",
            lambda x: Geglu.apply(x),  # pyright: ignore
            lambda x: x.chunk(2, -1)[0] * F.gelu(x.chunk(2, -1)[1]),
            [torch.randn(rows, width * 8, **half)],
            1e-2,
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
