"""Compile every kernel for a card that is not there, with the Triton that is installed: `python compile_kernels.py`.

Triton's interpreter forgives what its compiler does not. Here the compiler does its work, down to the machine code of
an H100, and nothing is launched. Prints the names of the kernels.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from kernel_cases import added, doubled, geglu, group_norm, layer_norm
from triton.backends.compiler import GPUTarget


class NoCard:
    """Triton's driver of a card of compute capability 9.0 on which a launch does nothing."""

    def __init__(self) -> None:
        self.utils, self.compiled = self, set()

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, ...]:
        self.compiled.add(name)
        return "loaded", name, 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return lambda *args, **kwargs: None


def main() -> None:
    """Call every kernel, forward and backward."""
    card = NoCard()
    triton.runtime.driver.set_active(card)
    like = torch.empty(0, dtype=torch.bfloat16)
    cases = (group_norm(like, 1, 320, 8, 32, True), layer_norm(like, 8, 320), geglu(like, 8, 320))
    for ours, _, inputs in (*cases, added(like, 1, 320, 8), doubled(like, 1, 320, 8)):
        given = [x.requires_grad_() for x in inputs]
        answers = ours(*given)
        answers = (answers,) if isinstance(answers, torch.Tensor) else answers
        torch.autograd.grad(answers, given, [torch.ones_like(answer) for answer in answers])
    print(*sorted(card.compiled))


if __name__ == "__main__":
    main()
