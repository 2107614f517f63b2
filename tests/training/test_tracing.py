"""Steps on the meta device: bytes and operations counted by hand, autocast as torch does it, and as a CPU measures."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from diffpo.training.tracing import Halving, Ledger


def meta(*shape: int, **more) -> torch.Tensor:
    return torch.empty(*shape, device="meta", **more)


def test_live_and_peak_by_hand():
    """Two tensors of 400 bytes; one goes; a third of 800 bytes comes: 400 + 800 live, which is also the peak."""
    held = meta(100)
    with Ledger([held]) as ledger:
        a, b = held + 1, held * 2
        assert (ledger.live, ledger.peak) == (800, 800)
        del a
        c = torch.cat([b, b])
        assert (ledger.live, ledger.peak, ledger.launches) == (1200, 1200, 3)
        view = c.view(2, 100)
        assert ledger.live == 1200 and view.shape == (2, 100)


def test_a_linear_layer_keeps_its_input_and_makes_gradients():
    """Forward: the answer, 4 x 3 floats. Backward adds the weight's and the bias's gradient, 15 floats."""
    layer, x = nn.Linear(4, 3, device="meta"), meta(5, 4)
    with Ledger([x, *layer.parameters()]) as ledger:
        y = layer(x)
        assert ledger.live == 4 * 5 * 3 and ledger.flops == 2 * 5 * 4 * 3
        y.sum().backward()
        assert ledger.flops == 2 * (2 * 5 * 4 * 3), "the input wants no gradient"
        del y
    assert ledger.live == 4 * (12 + 3)


@pytest.mark.parametrize("function", [functional.silu, functional.gelu])
def test_autocast_leaves_activations_their_dtype(function):
    with Halving(torch.bfloat16):
        assert function(meta(3, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
        assert function(meta(3, 4)).dtype == torch.float32


def test_autocast_runs_norms_in_float32():
    with Halving(torch.bfloat16):
        assert functional.group_norm(meta(3, 4, 1, dtype=torch.bfloat16), 2).dtype == torch.float32


def test_weights_are_halved_once_and_kept_for_the_backward():
    layer, x = nn.Linear(64, 64, device="meta"), meta(2, 64)
    with Ledger([x, *layer.parameters()]) as ledger:
        with Halving(torch.bfloat16):
            y = layer(layer(x))
        assert y.dtype == torch.bfloat16
        halves = 2 * (64 * 64 + 64)
        assert halves <= ledger.live < 2 * halves


def attention(batch: int, heads: int, tokens: int, width: int, half: torch.dtype | None) -> tuple[int, int]:
    q, k, v = (meta(batch, heads, tokens, width, requires_grad=True) for _ in range(3))
    with Ledger([q, k, v]) as ledger:
        with Halving(half):
            answer = functional.scaled_dot_product_attention(q, k, v)
        kept = ledger.live
        answer.sum().backward()
    return kept, ledger.flops


def test_attention_keeps_no_matrix_of_weights():
    """The answer and a sum per query. Products: 2 x 2 b h n n d forward, twice that backward."""
    kept, flops = attention(2, 3, 100, 8, None)
    assert kept == 4 * 2 * 3 * 100 * (8 + 1)
    assert flops == 3 * 2 * 2 * 2 * 3 * 100 * 100 * 8
    halved, _ = attention(2, 3, 100, 8, torch.bfloat16)
    assert halved == 4 * (2 * 2 * 3 * 100 * 8) + 4 * 2 * 3 * 100, "queries, keys, values and answer in two bytes"


def test_a_compiled_block_keeps_what_products_read():
    """x -> silu -> gelu -> linear: alone the linear layer's input stays; silu's answer is computed again."""
    layer, x = nn.Linear(50, 50, device="meta"), meta(2, 50, requires_grad=True)
    with Ledger([x, *layer.parameters()]) as ledger:
        ledger.enter_block()
        y = layer(functional.gelu(functional.silu(x)))
        ledger.leave_block()
        assert ledger.live == 3 * 400
        assert ledger.kept_if_compiled() == 2 * 400
        del y


@pytest.mark.parametrize(("kind", "pairs"), [("full", 8), ("full", 32), ("user", 2)])
def test_the_forecast_is_what_torch_allocates(kind, pairs):
    """A step of the shapes world's network on the CPU, whose allocations torch's profiler counts."""
    from diffpo.core.types import Embedding
    from diffpo.methods import METHODS
    from diffpo.models.outline import assemble, outline
    from diffpo.models.tunings import MODELS
    from diffpo.training.forecast import pairs_of, trace

    tuning, method = MODELS[kind](path="shapes:base"), METHODS["dpo"]()
    drawn = outline(tuning, (64, 64), 1)
    if kind == "user":
        drawn = drawn.telling(Embedding("somebody", 64), 300)
    policy, reference = assemble(drawn, tuning, torch.float32)
    forecast = trace(policy, reference, method, pairs_of(drawn, pairs, method.sides), None)
    assert math.isclose(measured(drawn, tuning, method, pairs), forecast.peak, rel_tol=0.1)


def measured(drawn, tuning, method, pairs: int) -> int:
    """The most bytes that a step allocates at a time, from the profiler's events."""
    from torch.profiler import ProfilerActivity, profile

    from diffpo.core.step import preference_step
    from diffpo.core.types import Rng
    from diffpo.models.outline import assemble
    from diffpo.training.forecast import pairs_of

    policy, reference = assemble(drawn, tuning, torch.float32, "cpu")
    batch = pairs_of(drawn, pairs, method.sides)
    latent = batch.latent.map(lambda x: torch.randn(x.shape))
    cond = batch.cond.map(lambda c: c.map(lambda x: torch.zeros(x.shape, dtype=x.dtype)))
    real = type(batch)(latent, cond, batch.preference, batch.index)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        preference_step(method, policy, reference, real, Rng(0, 0, real.index)).loss.sum().backward()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    live = peak = 0
    for event in events:
        live += event.nbytes()
        peak = max(peak, live)
    return peak
