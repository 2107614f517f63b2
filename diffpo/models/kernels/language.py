"""Triton where it is installed; torch for CPUs comes without it, and nobody calls a kernel there."""

from __future__ import annotations

from typing import Any

try:
    import triton
    import triton.language as tl
    from triton import jit
except ModuleNotFoundError:  # `fusing.can_fuse` says so
    triton = tl = None  # pyright: ignore

    def jit(kernel: Any) -> Any:  # pyright: ignore
        """Leave a kernel as it is: nobody calls it."""
        return kernel


PROGRAMS = 1024
"""Programs that keep a large GPU busy."""

__all__ = ["PROGRAMS", "jit", "tl", "triton"]
