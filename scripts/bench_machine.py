"""What `bench.py` measures with: clocks, peak memory, and the machine's matrix products."""

from __future__ import annotations

import functools
import gc
import importlib.metadata
import platform
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from diffpo.core.process import NoiseProcess
from diffpo.core.types import Condition
from diffpo.methods.base import Predictor

GIB = 1024**3
PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate")


class Clock:
    """Marks points in time: on a GPU in its own stream, without waiting for it."""

    def __init__(self, device: torch.device):
        """Measure on `device`."""
        self.device = device

    def mark(self) -> Any:
        """Note a point in time."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Time between two marks; valid after `synchronize`."""
        return end - start if isinstance(start, float) else start.elapsed_time(end) / 1000

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Timed:
    """A predictor that marks when it was asked and when it had answered."""

    def __init__(self, inner: Predictor, clock: Clock):
        """Time the calls of `inner`."""
        self.inner, self.clock = inner, clock
        self.start: Any = None
        self.end: Any = None

    @property
    def process(self) -> NoiseProcess:
        """The inner one's."""
        return self.inner.process

    def lockstep(self, n: int) -> int:
        """Ask the inner one."""
        return self.inner.lockstep(n)

    def predict(self, z: torch.Tensor, t: torch.Tensor, cond: Condition) -> torch.Tensor:
        """Pass on, between two marks."""
        self.start = self.clock.mark()
        answer = self.inner.predict(z, t, cond)
        self.end = self.clock.mark()
        return answer


def forget_peak(device: torch.device) -> None:
    """Free what is unused and start watching the peak of memory anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets this process's high-water mark
    except OSError:
        return


def peak_memory(device: torch.device) -> float:
    """Peak in GiB since `forget_peak`: what tensors took on a GPU, the whole process's resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    try:
        return _status("VmHWM") / GIB
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if platform.system() == "Darwin" else 1024) / GIB


def free_memory(device: torch.device) -> float:
    """GiB that can still be had."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / GIB
    import psutil

    return psutil.virtual_memory().available / GIB


@contextmanager
def limited_memory(device: torch.device, share: float = 0.9) -> Iterator[None]:
    """On a CPU, make allocations beyond `share` of the free memory fail, where else the system would kill processes."""
    if device.type == "cuda" or not sys.platform.startswith("linux"):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    used = _status("VmData")
    resource.setrlimit(resource.RLIMIT_DATA, (used + int(share * free_memory(device) * GIB), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@functools.cache  # a process measures it once
def matmul_peak(device: torch.device, dtype: torch.dtype, size: int | None = None, repeats: int = 5) -> dict[str, Any]:
    """Measure the best matrix product of random square matrices.

    Args:
        device: Where.
        dtype: The dtype that the networks compute in.
        size: Rows and columns. Default: 8192 on a GPU, 2048 on a CPU.
        repeats: Products to time, after three that warm up.

    Returns:
        `shape`, `dtype`, and `flops`: operations per second of the fastest product; `median_flops` of the median one.
    """
    size = size or (8192 if device.type == "cuda" else 2048)
    clock = Clock(device)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(repeats + 3):
        start = clock.mark()
        torch.mm(a, b)
        end = clock.mark()
        clock.synchronize()
        times.append(clock.seconds(start, end))
    times = times[3:]
    work = 2 * size**3
    return {
        "shape": [size, size, size],
        "dtype": str(dtype).removeprefix("torch."),
        "flops": work / min(times),
        "median_flops": work / statistics.median(times),
    }


def describe(device: torch.device) -> dict[str, Any]:
    """Name the card or the processor, and the versions that matter."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    versions["torch"] = torch.__version__  # with the kind of build
    return {"device": device.type, "name": name, "threads": torch.get_num_threads(), **versions}


def _status(name: str) -> int:
    """Bytes that Linux reports of this process under `name`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
