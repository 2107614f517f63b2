"""Triton where it is installed; torch for CPUs comes without it, and nobody calls a kernel there."""

from __future__ import annotations

from typing import Any

try:
    import triton.language as tl
    from triton import jit
except ModuleNotFoundError:  # `fusing.can_fuse` says so
    tl = None  # pyright: ignore

    def jit(kernel: Any) -> Any:  # pyright: ignore
        """Leave a kernel as it is: nobody calls it."""
        return kernel


PROGRAMS = 1024
"""Programs that keep a large GPU busy."""


def cdiv(a: int, b: int) -> int:
    """Divide and round up; Triton's own takes twenty times as long, before every launch."""
    return -(-a // b)


def power_of_2(n: int) -> int:
    """Round up to a power of two."""
    return 1 << (n - 1).bit_length()


__all__ = ["PROGRAMS", "cdiv", "jit", "power_of_2", "tl"]
