"""Low-rank layers as one function: PEFT's answers and gradients, in fewer operations."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from diffpo.compat import ensure_torchvision

ensure_torchvision()

from peft import LoraConfig, inject_adapter_in_model  # noqa: E402

from diffpo.models.low_rank import adapted_layers, fuse_adapters  # noqa: E402
from diffpo.models.networks import lean_adapters  # noqa: E402
from diffpo.models.reference import REFERENCE_ADAPTER, initial_adapters  # noqa: E402

WIDE, OUT, RANK = 40, 56, 8


def layer(dtype: torch.dtype = torch.float64, bias: bool = True, names: tuple[str, ...] = ("default",), **more: Any):
    """A network of one adapted layer, whose adapters have moved away from zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.ModuleDict({"to_q": nn.Linear(WIDE, OUT, bias=bias, dtype=dtype)}).requires_grad_(False)
        for name in names:
            config = LoraConfig(r=RANK, target_modules=["to_q"], **{"lora_alpha": RANK} | more)
            inject_adapter_in_model(config, network, adapter_name=name)
        for name, parameter in network.named_parameters():
            if ".lora_" in name:
                parameter.data = torch.randn(parameter.shape, dtype=dtype) / RANK
    return network


def pulled(network: Any, x: torch.Tensor, half: torch.dtype | None = None, again: bool = False) -> list[torch.Tensor]:
    """The answer, and the gradients of the input, where it wants one, and of what learns."""
    wants = [*([x] if x.requires_grad else []), *(p for p in network.parameters() if p.requires_grad)]
    with nullcontext() if half is None else torch.autocast("cpu", half):
        call = network["to_q"]
        answer = checkpoint(call, x, use_reentrant=False) if again else call(x)
    pull = torch.randn(answer.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return [answer.detach(), *torch.autograd.grad(answer, wants, pull.to(answer.dtype))]


def inputs(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).to(dtype)


@pytest.mark.parametrize("alpha", [RANK, 12])
@pytest.mark.parametrize("bias", [True, False])
def test_answers_and_gradients_are_those_of_peft(alpha, bias):
    cases = [inputs(3, WIDE), inputs(2, 5, WIDE), inputs(2, 3, 5, WIDE), inputs(0, 5, WIDE), inputs(WIDE, 5).t()]
    for x in [*cases, inputs(2, WIDE, 5).transpose(1, 2)]:
        for wanted in (True, False):  # the first layer's input, and the text's, want no gradient
            network = layer(bias=bias, lora_alpha=alpha)
            before = pulled(network, x.requires_grad_(wanted))
            fuse_adapters(network)
            for half in (None, torch.bfloat16):  # autocast leaves double precision as it is
                torch.testing.assert_close(pulled(network, x, half), before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("alpha", [RANK, 12])
def test_half_precision_rounds_no_more_than_peft(alpha):
    """Errors of sums over all that is computed, against single precision."""
    x = inputs(4, 64, WIDE, dtype=torch.float32).requires_grad_()
    network = layer(torch.float32, lora_alpha=alpha)
    exact, peft = pulled(network, x), pulled(network, x, torch.bfloat16)
    fuse_adapters(network)
    ours = pulled(network, x, torch.bfloat16)
    for mine, theirs, true in zip(ours, peft, exact, strict=True):
        assert mine.dtype == theirs.dtype
        assert 0 < (mine - true).norm() <= 1.01 * (theirs - true).norm() < 0.01 * true.norm()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_an_adapter_that_is_zero_changes_no_bit(half, bias):
    for base in (half, torch.float32):
        network = layer(torch.float32, bias)
        network["to_q"].base_layer.to(base)
        nn.init.zeros_(network["to_q"].lora_B["default"].weight)
        fuse_adapters(network)
        for x in (inputs(2, 33, WIDE, dtype=half), inputs(2, WIDE, 33, dtype=half).transpose(1, 2)):
            with torch.autocast("cpu", half):
                policy = network["to_q"](x)
                with torch.no_grad(), initial_adapters(network):
                    assert torch.equal(policy, network["to_q"](x))


def test_the_reference_is_the_adapter_that_training_began_with():
    network = layer(names=(REFERENCE_ADAPTER, "default"), lora_alpha=12)
    network["to_q"].set_adapter("default")
    x, found = inputs(3, WIDE), []
    for way in (lambda network: None, fuse_adapters):
        way(network)
        with torch.no_grad(), initial_adapters(network):
            found.append(network["to_q"](x))
        found.append(network["to_q"](x).detach())
    assert not torch.allclose(found[0], found[1])
    torch.testing.assert_close(found[2:], found[:2], rtol=1e-12, atol=1e-12)


def test_a_new_adapter_is_off_in_the_reference():
    network, x = layer(), inputs(3, WIDE)
    fuse_adapters(network)
    base = network["to_q"].base_layer(x)
    with torch.no_grad(), initial_adapters(network):
        torch.testing.assert_close(network["to_q"](x), base, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(network["to_q"](x), base)


def test_what_is_checkpointed_is_computed_again_alike():
    network = layer(torch.float32)
    fuse_adapters(network)
    x = inputs(2, 5, WIDE, dtype=torch.bfloat16).requires_grad_()
    plain, again = pulled(network, x, torch.bfloat16), pulled(network, x, torch.bfloat16, again=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


class Counting(TorchDispatchMode):
    """Notes what a GPU would be given."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and func.overloadpacket not in (torch.ops.aten.detach, torch.ops.aten._unsafe_view):
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_layer_takes_few_operations_and_keeps_little():
    """Forward and backward under autocast: products, casts of A and B, and on a CPU those of their gradients."""
    pull = inputs(2, 500, OUT, dtype=torch.bfloat16)
    found, kept = [], []
    for way in (lean_adapters, fuse_adapters):
        network, sizes = layer(torch.float32), {}
        network["to_q"].base_layer.to(torch.bfloat16)
        way(network)
        x = inputs(2, 500, WIDE, dtype=torch.bfloat16).requires_grad_()

        def note(y, sizes=sizes):
            sizes[y.untyped_storage().data_ptr()] = y.untyped_storage().nbytes()
            return y

        with Counting() as counting, torch.autograd.graph.saved_tensors_hooks(note, lambda y: y):
            with torch.autocast("cpu", torch.bfloat16):
                answer = network["to_q"](x)
            answer.backward(pull)
        found.append(counting.names)
        kept.append(sum(sizes.values()))
    assert [len(names) for names in found] == [16, 12]
    assert kept[1] == kept[0]


def test_other_layers_stay_as_they_are():
    for more in ({"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}):
        assert not adapted_layers(layer(torch.float32, **more))
    assert not adapted_layers(layer().requires_grad_(True))
    hooked = layer()
    hooked["to_q"].base_layer.register_forward_hook(lambda *_: None)
    assert not adapted_layers(hooked) and adapted_layers(layer())
    x, both = inputs(3, WIDE), layer(names=("one", "other"))
    both["to_q"].set_adapter(["one", "other"])
    sum_of_both = both["to_q"](x)
    fuse_adapters(both)
    assert torch.equal(both["to_q"](x), sum_of_both)
    merged = layer()
    fuse_adapters(merged)
    before = merged["to_q"](x)
    merged["to_q"].merge()
    torch.testing.assert_close(merged["to_q"](x), before)
