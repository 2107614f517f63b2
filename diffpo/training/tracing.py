"""Run a step on the meta device as if on a GPU, and see what it takes: bytes over time, floating-point operations.

Meta tensors have shapes and no numbers, so that a step of any size runs anywhere in seconds. Three things are put in
its way, for what a meta device lacks:

    Halving     autocast of a GPU: which functions get half precision, and which get float32
    attend      attention as the fused kernels do it: they keep queries, keys, values, the answer and one sum per row
    Ledger      which storages live at each moment: the peak is that of a GPU's allocator, but for workspaces
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry, register_flop_formula

HALVED = {
    *(functional.linear, functional.conv1d, functional.conv2d, functional.conv3d),
    functional.scaled_dot_product_attention,
    *(torch.matmul, torch.mm, torch.bmm, torch.baddbmm, torch.addmm, torch.einsum),
    *(Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm, Tensor.baddbmm, Tensor.addmm),
}
"""Functions that autocast of a GPU runs in half precision."""
WHOLE = {
    *(functional.group_norm, functional.layer_norm, functional.softmax, functional.log_softmax, functional.softplus),
    *(functional.interpolate, functional.mse_loss, functional.logsigmoid),
    *(torch.softmax, torch.exp, torch.log, torch.pow, torch.rsqrt, torch.reciprocal, torch.sum, torch.cumsum),
    *(Tensor.softmax, Tensor.exp, Tensor.log, Tensor.pow, Tensor.__pow__, Tensor.rsqrt, Tensor.reciprocal),
    *(Tensor.sum, Tensor.cumsum),
}
"""Functions that it runs in float32."""


@torch.library.custom_op("diffpo::attend", mutates_args=())
def _attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    raise AssertionError("attention is only traced")


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(q.shape[:-1], dtype=torch.float32)


@torch.library.custom_op("diffpo::attend_back", mutates_args=())
def _attend_back(grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    raise AssertionError("attention is only traced")


@_attend_back.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _back(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, _, _ = ctx.saved_tensors
    return _attend_back(grad, q, k, v)


_attend.register_autograd(_back, setup_context=_keep)


@register_flop_formula(torch.ops.diffpo.attend)
def _flops(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
    """Two matrix products: queries with keys, weights with values."""
    rows = math.prod(q[:-1])
    return 2 * rows * k[-2] * (q[-1] + v[-1])


@register_flop_formula(torch.ops.diffpo.attend_back)
def _flops_back(grad: Sequence[int], q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
    """Twice those of the forward; what a fused kernel computes again is not counted."""
    return 2 * _flops(q, k, v)


aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution, torch.ops.diffpo.attend}
"""What inductor does not fuse with what stands before it."""


class Halving(TorchFunctionMode):
    """Autocast of a GPU to `dtype`, or none, and fused attention, for meta tensors."""

    def __init__(self, dtype: torch.dtype | None):
        super().__init__()
        self._dtype = dtype
        self._cast: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._dtype is not None and (func in HALVED or func in WHOLE):
            wanted = self._dtype if func in HALVED else torch.float32
            args, kwargs = tree_map_only(Tensor, lambda x: self._as(x, wanted), (args, kwargs))
        if func is functional.scaled_dot_product_attention:
            q, k, v = (*args, *(kwargs[name] for name in ("query", "key", "value") if name in kwargs))[:3]
            if q.device.type == "meta":
                answer: Tensor = _attend(q, k, v)[0]
                return answer
        return func(*args, **kwargs)

    def _as(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Cast as autocast does: floats of a GPU; trained weights once for the whole forward."""
        eligible = x.is_floating_point() and x.device.type == "meta" and x.dtype != torch.float64
        if not eligible or x.dtype == dtype:
            return x
        if not (x.requires_grad and x.is_leaf and dtype != torch.float32):
            return x.to(dtype)
        if id(x) not in self._cast:
            self._cast[id(x)] = x.to(dtype)
        return self._cast[id(x)]

    def __exit__(self, *error: Any) -> None:
        self._cast.clear()
        super().__exit__(*error)


@dataclass
class Made:
    """A storage that an operation made."""

    size: int
    fusible: bool
    """Whether it can be computed again from what it was made of, within a compiled block."""
    sources: tuple[int, ...]
    """Storages that it was made of."""
    block: int
    """Number of the compiled block that made it; 0: none."""
    needed: bool = False
    """Whether a matrix product or another block reads it: a compiled block hands it on."""


class Ledger(TorchDispatchMode):
    """Counts the bytes of meta storages that were made since it began and live; `held` are there already."""

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = self.launches = self.flops = 0
        self._block = self._blocks = 0
        self._held = {x.untyped_storage()._cdata for x in held}
        self._known: dict[int, weakref.ref[Any]] = {}
        self._made: dict[int, Made] = {}

    def enter_block(self) -> None:
        """Say that a block that may be compiled begins; none lies in another one."""
        self._blocks += 1
        self._block = self._blocks

    def leave_block(self) -> None:
        """Say that it has ended."""
        self._block = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        self.launches += not func.is_view
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=answer)
        read = [x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        product = func.overloadpacket in PRODUCTS
        for key in read:
            if (made := self._made.get(key)) is not None and (product or made.block != self._block):
                made.needed = True
        for x in tree_leaves(answer):
            if isinstance(x, Tensor) and x.device.type == "meta":
                self._enter(x, tuple(read), fusible=not product)
        return answer

    def _enter(self, x: Tensor, sources: tuple[int, ...], fusible: bool) -> None:
        storage = x.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._held or (key in self._known and self._known[key]() is not None):
            return

        def leave(_: Any) -> None:
            self.live -= size
            self._known.pop(key, None)
            self._made.pop(key, None)

        self._known[key] = weakref.ref(storage, leave)
        self._made[key] = Made(size, fusible, sources, self._block)
        self.live += size
        self.peak = max(self.peak, self.live)

    def kept_if_compiled(self) -> int:
        """Bytes that would live now if blocks were compiled: what can be computed again within one is not kept."""
        gone: set[int] = set()
        for key, made in self._made.items():  # in the order in which they were made
            there = all(s in self._held or s in self._made for s in made.sources)
            if made.block and made.fusible and not made.needed and there:
                gone.add(key)
        return self.live - sum(self._made[key].size for key in gone)
