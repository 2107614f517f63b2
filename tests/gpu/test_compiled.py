"""Compilation by inductor on a GPU: everything runs compiled, and means the same."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest
import torch
from torch._dynamo.utils import counters

from diffpo.config.run import Train

pytestmark = pytest.mark.gpu
KINDS = [kind for part in get_args(get_type_hints(Train)["compile"]) for kind in get_args(part)]
"""What `train.compile` may be."""


def strictly():
    """Raise where torch would run a block uncompiled because it has compiled too many."""
    return torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)


@pytest.mark.parametrize(("family", "tuning"), [("levels", "full"), ("sd3", "lora")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_step_is_the_same_step(start, same_step, record_property, kind, family, tuning):
    """`levels` has as many kinds of blocks as Stable Diffusion 1.5."""
    plain = start({"model.name": tuning}, family).step()
    started = start({"model.name": tuning, "train.compile": kind}, family)
    counters.clear()
    with strictly():
        same_step(plain, started.step())
        graphs = counters["stats"]["unique_graphs"]
        again = started.step()
    same_step(plain, again)
    assert graphs > 0 and counters["stats"]["unique_graphs"] == graphs, "the second update compiles nothing"
    assert not counters["graph_break"], dict(counters["graph_break"])
    record_property("graphs", graphs)
