"""Compiled calls of a network, or of its repeated blocks, by torch.compile.

Every graph has fixed shapes, which is what makes it fast. Blocks that have one class share their graphs: one for each
kind of block (sizes of its weights and inputs), with gradients and without. The first number of rows that a module is
given, that of training, gets graphs of its own; all other numbers of rows (the rest of a table, rows that an inversion
has left) share one more, in which that number is free. So the number of graphs does not grow with the numbers of rows.

Nothing falls back to the plain network without a word: a module that torch cannot compile in one piece is named in the
log, once, with the reason.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

log = logging.getLogger(__name__)

Compile = Literal["regional", "whole"]
"""What is compiled: the repeated blocks, each kind once, or the network in one piece."""
BACKEND = "inductor"
"""What compiles the captured graphs."""
GRAPHS = 512
"""Graphs that torch may keep for a class of blocks: more than there are kinds of blocks, times numbers of rows."""


def compile_modules(
    modules: Iterable[nn.Module],
    layout: torch.memory_format = torch.contiguous_format,
    kept: Path | None = None,
) -> None:
    """Let calls of these modules run compiled, in place; parameters keep their names.

    Args:
        modules: None of them lies in another one.
        layout: How images `[b c h w]` lie in memory inside, and how they are handed on.
        kept: Folder where torch keeps what it compiles for the next run, unless the environment names another one.
    """
    if kept is not None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(kept.absolute()))
    for module in modules:
        module._compiled_call_impl = Compiled(module, layout)  # pyright: ignore[reportAttributeAccessIssue]


class Compiled:
    """The compiled call of one module."""

    def __init__(self, module: nn.Module, layout: torch.memory_format):
        """Prepare it; torch compiles at the first call."""
        plain: Callable[..., Any] = module._call_impl
        self._name, self._plain, self._rows = type(module).__name__, plain, 0
        options = None
        if layout == torch.channels_last:
            plain = Handing(plain)
            if BACKEND == "inductor":  # its own rule leaves this out where an image has more channels than its result
                options = {"force_layout_optimization": True}
        self._call = torch.compile(plain, backend=BACKEND, fullgraph=True, dynamic=False, options=options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        # All modules of a class share one code object, for which torch keeps 8 graphs. The limit belongs to the thread,
        # and gradient checkpointing recomputes in threads of its own, so it is raised here.
        config: Any = torch._dynamo.config
        if config.recompile_limit < GRAPHS:
            config.recompile_limit, config.accumulated_recompile_limit = GRAPHS, 64 * GRAPHS
            config.fail_on_recompile_limit_hit = True
        self._free_rows(args, kwargs)
        try:
            return self._call(*args, **kwargs)
        except torch._dynamo.exc.Unsupported as error:
            log.warning("a %s runs uncompiled, because torch cannot compile it: %s", self._name, _first_line(error))
            self._call = self._plain
            return self._plain(*args, **kwargs)

    def _free_rows(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Tell torch to leave the number of rows free, unless it is the usual one."""
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.ndim]
        if not inputs:
            return
        rows = len(inputs[0])
        self._rows = self._rows or rows
        if rows != self._rows:
            for x in inputs:
                if len(x) == rows:
                    torch._dynamo.maybe_mark_dynamic(x, 0)


class Handing:
    """A call that hands images on with channels last, so that no copy stands between two compiled blocks."""

    def __init__(self, call: Callable[..., Any]):
        self.call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return tree_map_only(Tensor, _channels_last, self.call(*args, **kwargs))


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
