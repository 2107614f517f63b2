"""Compilation: what is compiled runs compiled, in as few graphs as there are kinds of it, whatever the batch."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import pytest
import torch
from tiny_steps import side
from torch._dynamo.utils import counters

from diffpo.compat import ensure_torchvision

ensure_torchvision()

from diffusers import DDPMScheduler, SD3Transformer2DModel, UNet2DConditionModel  # noqa: E402

from diffpo.core.process import Time  # noqa: E402
from diffpo.core.types import Condition  # noqa: E402
from diffpo.models import FAMILIES, Denoiser  # noqa: E402
from diffpo.models.compiling import compile_modules  # noqa: E402
from diffpo.models.lora import LoRA  # noqa: E402
from diffpo.models.reference import Reference  # noqa: E402
from diffpo.models.tuning import Full  # noqa: E402

UNET = {"sample_size": 16, "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 24}


def sd15():
    """Stable Diffusion 1.5's kinds of levels, three where it has four, with narrow layers and one block for its two."""
    return UNet2DConditionModel(
        block_out_channels=(8, 16, 32),
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        **UNET,
    )


def sdxl():
    """SDXL's kinds of levels, two where it has three, with narrow layers, one block for its two, and a stack of 2."""
    return UNet2DConditionModel(
        **UNET | {"cross_attention_dim": 48},
        block_out_channels=(8, 16),
        attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    )


def sd3(layers=11):
    """Joint blocks and the last, which lets the text go."""
    return SD3Transformer2DModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        num_layers=layers,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=48,
        caption_projection_dim=16,
        pooled_projection_dim=48,
        pos_embed_max_size=16,
    )


def small_sd3():
    """One joint block and the last."""
    return sd3(2)


def models(make, family: str, tuning: str) -> tuple[Denoiser, Reference]:
    """Policy and reference of a random network; the policy has moved away from the reference."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, kind = make(), FAMILIES[family]
        tuned = Full(path="none") if tuning == "full" else LoRA(path="none", rank=2)
        tuned.prepare(network, kind, torch.float32)
        policy = kind(network, kind.make_process(dict(DDPMScheduler().config), Time()))
        reference = tuned.reference(policy, torch.float32)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter += 0.03 * torch.randn(parameter.shape)
    return policy, reference


def asked(family: str, rows: int):
    """What a network is asked: z, t and the condition of so many rows."""
    name = {"unet": "sd15"}.get(family, family)
    z, one = side(name, 0, "chosen", torch.float32)
    z = z.repeat(rows, 1, 1, 1, 1).repeat_interleave(2, -1).repeat_interleave(2, -2)
    t = torch.linspace(0.3, 0.7, rows) if family == "sd3" else torch.linspace(300, 700, rows).long()
    return z, t, Condition.cat([one] * rows)


def step(policy: Denoiser, reference: Reference, family: str, rows: int) -> torch.Tensor:
    """Ask both, and take the policy's gradient; returns the loss."""
    question = asked(family, rows)
    loss = (policy.predict(*question) - reference.predict(*question)).square().mean()
    loss.backward()
    return loss.detach()


def kinds(denoisers: Iterable[Denoiser], ask) -> int:
    """Count what torch must tell apart: a part's class, plain attributes and shapes of weights, the shapes and layouts
    of its inputs, which of them need a gradient, and whether one is wanted. A LoRA's first part has inputs that need
    none."""
    found = set()

    def note(part, args, kwargs):
        plain = {name: (type(x), x) for name, x in vars(part).items() if isinstance(x, bool | int | float | str)}
        weights = tuple(p.shape for p in part.parameters())
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
        inputs = tuple((x.shape, x.stride(), x.requires_grad) for x in tensors)
        found.add((type(part), tuple(sorted(plain.items())), weights, inputs, torch.is_grad_enabled()))

    parts = {id(part): part for denoiser in denoisers for part in denoiser.regions()}
    handles = [part.register_forward_pre_hook(note, with_kwargs=True) for part in parts.values()]
    ask()
    for handle in handles:
        handle.remove()
    return len(found)


SLOW = [
    pytest.param(make, family, tuning, what, last, marks=pytest.mark.slow)
    for make, family, tuning, what, last in (
        (sd15, "unet", "lora", "regional", False),
        (sdxl, "sdxl", "lora", "regional", True),
        (sd3, "sd3", "full", "regional", False),
        (sdxl, "sdxl", "full", "whole", True),
        (small_sd3, "sd3", "lora", "whole", False),
    )
]


@pytest.mark.parametrize(
    ("make", "family", "tuning", "what", "last"),
    SLOW,
)
def test_nothing_runs_uncompiled_and_graphs_are_few(monkeypatch, make, family, tuning, what, last):
    """A graph for each kind of part, of policy and reference; as many again for all other numbers of rows.

    A number of rows that comes back compiles nothing. Torch raises here where it would give up. The graphs are run as
    they are captured: what torch makes of them takes minutes, and is not ours.
    """
    monkeypatch.setattr("diffpo.models.compiling.BACKEND", "eager")
    plain, compiled = models(make, family, tuning), models(make, family, tuning)
    for denoiser in {id(x.network): x for x in (compiled[0], compiled[1].denoiser)}.values():
        if last:
            denoiser.put_channels_last()
        denoiser.compile(what)
    compiled[1].denoiser.layout = compiled[0].layout
    asked = (plain[0], plain[1].denoiser)
    most = kinds(asked, lambda: step(*plain, family, 4)) if what == "regional" else 2
    torch._dynamo.reset()
    counters.clear()
    graphs = []
    for rows in (4, 4, 3, 5, 3):
        torch.testing.assert_close(step(*compiled, family, rows), step(*plain, family, rows), rtol=2e-4, atol=0)
        graphs.append(counters["stats"]["unique_graphs"])
    usual, others = graphs[0], graphs[2] - graphs[0]
    assert 2 <= usual <= (most if not last else 2 * most), (graphs, most)
    assert graphs == [usual, usual, *[usual + others] * 3], "a number of rows compiles again"
    assert 0 < others <= usual
    assert not counters["graph_break"]
    torch._dynamo.reset()


class Part(torch.nn.Module):
    """A part of a network."""

    def __init__(self, size):
        super().__init__()
        self.linear, self.norm = torch.nn.Linear(size, size), torch.nn.LayerNorm(size)

    def forward(self, x):
        return x + self.norm(self.linear(x))


def test_parts_of_one_class_share_graphs_and_the_usual_number_of_rows_has_its_own(monkeypatch):
    """Two sizes of a part, with gradients and without; numbers of rows: the usual one, all others, and one alone."""
    monkeypatch.setattr("diffpo.models.compiling.BACKEND", "eager")
    sizes = (3, 5, 5)
    parts = [Part(n) for n in sizes]
    compile_modules(parts)
    torch._dynamo.reset()
    counters.clear()
    graphs = []
    for rows in (4, 4, 7, 2, 9, 1, 1, 4):
        for part, n in zip(parts, sizes, strict=True):
            x = torch.randn(rows, n)
            torch.testing.assert_close(part(x), part._call_impl(x))
            with torch.no_grad():
                part(x)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == [4, 4, 8, 8, 8, 12, 12, 12]
    torch._dynamo.reset()


def test_what_cannot_be_compiled_is_named_and_runs(caplog):
    class Stubborn(torch.nn.Module):
        def forward(self, x):
            torch._dynamo.graph_break()
            return 2 * x

    part = Stubborn()
    compile_modules([part])
    with caplog.at_level(logging.WARNING):
        assert part(torch.ones(2)).tolist() == part(torch.ones(2)).tolist() == [2.0, 2.0]
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "a Stubborn runs uncompiled, because torch cannot compile it"
    ]


def test_channels_last_changes_no_answer():
    """In float64: sums in another order, nothing else."""
    for tuning in ("full", "lora"):
        policy, reference = models(sd15, "unet", tuning)
        policy.network.double()
        reference.denoiser.network.double()
        policy.dtype = reference.denoiser.dtype = torch.float64
        before = step(policy, reference, "unet", 2)
        for denoiser in (policy, reference.denoiser):
            denoiser.put_channels_last()
        torch.testing.assert_close(step(policy, reference, "unet", 2), before, rtol=1e-10, atol=0)
        filters = [p for p in policy.network.parameters() if p.ndim == 4]
        assert filters and all(p.is_contiguous(memory_format=torch.channels_last) for p in filters)


FUSED = {"ResnetBlock2D", "BasicTransformerBlock", "Attention", "GEGLU", "Upsample2D", "GroupNorm"}
"""Parts of a UNet whose call is replaced."""


@pytest.mark.parametrize(
    ("make", "family", "tuning", "parts"),
    [
        (sd15, "unet", "full", FUSED),
        (sdxl, "sdxl", "lora", {*FUSED, "Linear"}),
        (small_sd3, "sd3", "lora", {"Linear"}),
    ],
)
def test_a_fused_network_is_the_same_where_its_kernels_have_no_say(make, family, tuning, parts):
    """In float64 every norm is torch's; what is left of the replaced calls changes no number."""
    policy, reference = models(make, family, tuning)
    for network in (policy.network, reference.denoiser.network):
        network.double()
    policy.dtype = reference.denoiser.dtype = torch.float64

    def found() -> list[torch.Tensor]:
        policy.network.zero_grad()
        loss = step(policy, reference, family, 2)
        return [loss, *(p.grad for p in policy.network.parameters() if p.grad is not None)]

    before = found()
    policy.fuse()
    assert {type(m).__name__ for m in policy.network.modules() if "forward" in vars(m)} == parts
    torch.testing.assert_close(found(), before, rtol=1e-10, atol=1e-15)
    assert not policy.can_fuse(torch.device("cpu"))
