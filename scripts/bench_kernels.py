"""What kernels cost on a GPU: attention by backend, convolutions and compiled blocks by layout, an update's by group.

python scripts/bench_kernels.py            # wants a GPU; under a minute
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity

SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
ATTENTION = {  # rows, heads, queries, keys, width of a head
    "sd15 64x64": (32, 8, 4096, 4096, 40),
    "sd15 32x32": (32, 8, 1024, 1024, 80),
    "sd15 16x16": (32, 8, 256, 256, 160),
    "sd15 64x64 text": (32, 8, 4096, 77, 40),
    "sdxl 64x64": (8, 10, 4096, 4096, 64),
    "sdxl 32x32": (8, 20, 1024, 1024, 64),
    "sdxl 32x32 text": (8, 20, 1024, 77, 64),
    "sd35m": (8, 24, 4429, 4429, 64),
}
CONVOLUTIONS = {  # rows, channels in and out, side
    "320 64": (32, 320, 320, 64),
    "640 32": (32, 640, 640, 32),
    "1280 16": (32, 1280, 1280, 16),
    "2560-1280 16": (32, 2560, 1280, 16),
}
GROUPS = {
    "convolution": ("conv", "wgrad", "dgrad", "implicit", "nchw", "nhwc", "cutlass_tensorop_f16", "xmma_fprop"),
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "matrix product": ("gemm", "cublas", "nvjet", "xmma", "cutlass", "splitk", "gemv"),
    "optimizer": ("multi_tensor", "adam", "foreach", "lpnorm"),
    "copy": ("memcpy", "memset", "copy", "cat", "transpose"),
    "norm": ("norm", "welford", "_red_", "_per_", "reduce"),
    "pointwise": ("elementwise", "triton_poi", "pointwise", "vectorized"),
}


def seconds(work: Callable[[], Any], device: torch.device, repeats: int = 5) -> float:
    """Least time that some work takes."""
    times = []
    for _ in range(repeats + 2):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[2:])


def attention(device: torch.device, scale: int) -> Iterator[dict[str, Any]]:
    """Time attention, forward and both ways, by backend; `scale` divides rows and tokens."""
    for name, (rows, heads, queries, keys, width) in ATTENTION.items():
        made = [
            torch.randn(max(rows // scale, 1), heads, n // scale, width, device=device, dtype=torch.bfloat16)
            for n in (queries, keys, keys)
        ]
        q, k, v = (x.requires_grad_() for x in made)
        work = 4 * q.shape[0] * heads * q.shape[2] * k.shape[2] * width
        for backend in ("flash", "efficient", "cudnn"):
            try:
                with sdpa_kernel(SDPA[backend]):
                    with torch.no_grad():
                        forward = seconds(lambda q=q, k=k, v=v: scaled_dot_product_attention(q, k, v), device)
                    both = seconds(
                        lambda q=q, k=k, v=v: torch.autograd.grad(
                            scaled_dot_product_attention(q, k, v), (q, k, v), torch.ones_like(q)
                        ),
                        device,
                    )
            except RuntimeError as error:
                yield {"attention": name, "backend": backend, "error": str(error).splitlines()[0][:80]}
                continue
            yield {
                "attention": name,
                "backend": backend,
                "forward_ms": forward * 1e3,
                "both_ms": both * 1e3,
                "forward_tflops": work / forward / 1e12,
                "both_tflops": 3.5 * work / both / 1e12,
            }


def convolutions(device: torch.device, scale: int) -> Iterator[dict[str, Any]]:
    """Time convolutions, forward and both ways, by layout, as cuDNN's rule picks them and as its trials do."""
    for name, (rows, channels, out, side) in CONVOLUTIONS.items():
        for layout in (torch.contiguous_format, torch.channels_last):
            for trials in (False, True):
                torch.backends.cudnn.benchmark = trials
                conv = nn.Conv2d(channels, out, 3, padding=1, device=device, dtype=torch.bfloat16)
                conv = conv.to(memory_format=layout)
                x = torch.randn(max(rows // scale, 1), channels, side, side, device=device, dtype=torch.bfloat16)
                x = x.to(memory_format=layout).requires_grad_()

                def both(conv: nn.Module = conv, x: Tensor = x) -> Any:
                    y = conv(x)
                    return torch.autograd.grad(y, (x, *conv.parameters()), torch.ones_like(y))

                with torch.no_grad():
                    forward = seconds(lambda conv=conv, x=x: conv(x), device)
                whole, work = seconds(both, device), 2 * len(x) * channels * out * 9 * side**2
                yield {
                    "convolution": name,
                    "layout": str(layout).removeprefix("torch."),
                    "benchmark": trials,
                    "forward_ms": forward * 1e3,
                    "both_ms": whole * 1e3,
                    "both_tflops": 3 * work / whole / 1e12,
                }
    torch.backends.cudnn.benchmark = False


def blocks(device: torch.device, scale: int, backend: str) -> Iterator[dict[str, Any]]:
    """Time a block of SD1.5's UNet, plain and compiled, by the layout at its boundary and inside."""
    from diffusers.models.resnet import ResnetBlock2D

    from diffpo.models import compiling

    compiling.BACKEND = backend
    for channels, out, side in ((320, 320, 64), (960, 320, 64)):
        for boundary, compiled in (("nchw", ""), ("nchw", "nchw"), ("nchw", "nhwc"), ("nhwc", "nhwc")):
            sizes = {"in_channels": channels // scale, "out_channels": out // scale, "temb_channels": 1280}
            block = ResnetBlock2D(**sizes, groups=max(32 // scale, 1)).to(device)
            layout = torch.channels_last if boundary == "nhwc" else torch.contiguous_format
            x = torch.randn(max(32 // scale, 1), channels // scale, side // scale, side // scale, device=device)
            x = x.to(torch.bfloat16).to(memory_format=layout).requires_grad_()
            temb = torch.randn(len(x), 1280, device=device, dtype=torch.bfloat16)
            if compiled:
                inner = torch.channels_last if compiled == "nhwc" else torch.contiguous_format
                compiling.compile_modules([block], inner)
                if (boundary, compiled) == ("nchw", "nhwc"):  # inside only
                    forced = {"force_layout_optimization": True} if backend == "inductor" else None
                    block._compiled_call_impl = torch.compile(block._call_impl, backend=backend, options=forced)

            def both(block: nn.Module = block, x: Tensor = x, temb: Tensor = temb) -> Any:
                with torch.autocast(x.device.type, torch.bfloat16):
                    y = block(x, temb)
                return torch.autograd.grad(y, (x, *block.parameters()), torch.ones_like(y))

            began = time.perf_counter()
            both()
            first = time.perf_counter() - began
            yield {
                "block": f"{channels}-{out} {side}",
                "boundary": boundary,
                "compiled": compiled or "no",
                "both_ms": seconds(both, device) * 1e3,
                "first_seconds": first,
            }
            torch._dynamo.reset()


def profile(work: Callable[[], Any], longest: int = 14) -> dict[str, Any]:
    """Profile some work on a GPU: milliseconds by group of kernels, and the longest kernels by name."""
    if not torch.cuda.is_available():
        return {}
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as found:
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        wall = time.perf_counter() - began
    groups: dict[str, float] = defaultdict(float)
    kernels = [(event.key, event.self_device_time_total / 1e3, event.count) for event in found.key_averages()]
    for name, spent, _ in kernels:
        groups[group_of(name)] += spent
    kernels.sort(key=lambda kernel: -kernel[1])
    busy = sum(groups.values())
    lines = [f"busy {busy:.1f} ms of {wall * 1e3:.1f} ms: " + ", ".join(f"{k} {v:.1f}" for k, v in groups.items())]
    lines += [f"{spent:8.2f} ms {times:5} x {name[:110]}" for name, spent, times in kernels[:longest]]
    return {"busy_ms": busy, "wall_ms": wall * 1e3, "groups": dict(groups), "lines": lines, "kernels": kernels[:60]}


def group_of(kernel: str) -> str:
    """The group of a kernel, by its name."""
    name = kernel.lower()
    order = ("attention", "optimizer", "pointwise", "norm", "convolution", "matrix product", "copy")
    if name.startswith("triton"):
        order = ("pointwise", "norm")
    return next((group for group in order if any(part in name for part in GROUPS[group])), "other")


def main(given: list[str] | None = None) -> int:
    """Time what the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="*", help="attention, convolutions, blocks (default: all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scale", type=int, default=1, help="divide the sizes by this, to try it on a CPU")
    parser.add_argument("--backend", default="inductor", help="what compiles")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args(given)
    device, results = torch.device(options.device), []
    work = {
        "attention": lambda: attention(device, options.scale),
        "convolutions": lambda: convolutions(device, options.scale),
        "blocks": lambda: blocks(device, options.scale, options.backend),
    }
    for name in options.what or work:
        for result in work[name]():
            results.append(result)
            print(*(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in result.items()), flush=True)
            if options.json:
                options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
