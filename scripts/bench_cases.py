"""What `bench.py` measures: real architectures at full size, the shapes world's, and tiny ones; and what they cost.

Weights are random (speed and memory do not depend on them) and made where they are used, in their final dtype. FLOPs
are counted on the meta device, which needs no memory (`diffpo.training.forecast`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from diffpo.core.types import Condition, Pair, PairBatch
from diffpo.methods import METHODS, PairwiseMethod
from diffpo.models import FAMILIES, Denoiser
from diffpo.models.known import DDPM, SD15, SD35_MEDIUM, SDXL
from diffpo.models.lora import LoRA
from diffpo.models.outline import Outline, assemble
from diffpo.models.reference import Reference
from diffpo.models.tuning import Full, Tuning
from diffpo.training.forecast import pairs_of, trace, weigh

TINY_UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
}
TINY_SDXL: dict[str, Any] = {
    **TINY_UNET,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24 + 6 * 8,
}
TINY_SD3: dict[str, Any] = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 8,
    "out_channels": 8,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 48,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 48,
    "pos_embed_max_size": 16,
}


def _unet(settings: Mapping[str, Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel(**settings)

    return make


def _sd3(settings: Mapping[str, Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from diffusers import SD3Transformer2DModel

        return SD3Transformer2DModel(**settings)

    return make


def _shapes() -> nn.Module:
    from shapes_builder.models import make_unet

    return make_unet()


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, and the sizes of what it is asked about."""

    family: str
    """Key of `FAMILIES`."""
    make: Callable[[], nn.Module]
    """Makes the network on the default device, in the default dtype."""
    latent: tuple[int, int, int]
    """Channels, height and width of one latent."""
    text: tuple[int, int]
    """Number and width of one prompt's text states."""
    pooled: int | None = None
    """Width of the pooled text state, for the families that use one."""
    scheduler: Mapping[str, Any] = field(default_factory=lambda: DDPM)
    """Configuration of the pipeline's scheduler."""
    batch: int = 2
    """Pairs per update unless the command line says otherwise."""

    def rows(self, count: int, seed: int = 0, device: str = "cpu") -> list[dict[str, Tensor]]:
        """Make `count` encoded pairs as the cache hands them out: float32, no batch axis."""
        generator = None if device == "meta" else torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device)

        channels, height, width = self.latent
        size = torch.tensor([height * 8, width * 8, 0, 0, height * 8, width * 8], device=device)
        rows = []
        for _ in range(count):
            row = {side: normal(channels, 1, height, width) for side in ("chosen", "rejected")}
            row |= {"text": normal(*self.text), "size": size}
            rows.append(row if self.pooled is None else row | {"pooled": normal(self.pooled)})
        return rows


CASES: dict[str, Case] = {
    "shapes": Case(family="unet", make=_shapes, latent=(4, 8, 8), text=(32, 128), batch=32),
    "sd15@512": Case(family="unet", make=_unet(SD15), latent=(4, 64, 64), text=(77, 768), batch=8),
    "sdxl@1024": Case(family="sdxl", make=_unet(SDXL), latent=(4, 128, 128), text=(77, 2048), pooled=1280),
    "sd35m@1024": Case(  # 77 states of the CLIP encoders, then 256 of T5
        family="sd3",
        make=_sd3(SD35_MEDIUM),
        latent=(16, 128, 128),
        text=(333, 4096),
        pooled=2048,
        scheduler={"shift": 3.0},
    ),
    "tiny-sd15": Case(family="unet", make=_unet(TINY_UNET), latent=(4, 8, 8), text=(16, 24)),
    "tiny-sdxl": Case(family="sdxl", make=_unet(TINY_SDXL), latent=(4, 8, 8), text=(16, 24), pooled=24),
    "tiny-sd3": Case(
        family="sd3", make=_sd3(TINY_SD3), latent=(8, 8, 8), text=(32, 48), pooled=48, scheduler={"shift": 3.0}
    ),
}
TIMED = ("dpo", "inpo", "smpo")
"""Methods that can be timed: what tells the others from DPO costs nothing."""


def make_method(name: str) -> PairwiseMethod:
    """Make a method with its defaults."""
    method = METHODS[name]()  # pyright: ignore[reportCallIssue]
    assert isinstance(method, PairwiseMethod)
    return method


def make_tuning(
    kind: str, *, rank: int = 16, attention: str = "native", checkpointing: bool = False, share: float = 1.0
) -> Tuning:
    """Make the `model` block of a config; its path is never read."""
    shared: dict[str, Any] = {"path": "none", "attention": attention, "gradient_checkpointing": checkpointing}
    shared["recomputed_share"] = share
    return LoRA(rank=rank, **shared) if kind == "lora" else Full(**shared)


def outline_of(case: Case) -> Outline:
    """What decides what the case takes."""
    pooled = None if case.pooled is None else torch.empty(1, case.pooled, device="meta")
    size = torch.empty(1, 6, dtype=torch.long, device="meta")
    channels, height, width = case.latent
    return Outline(
        family=FAMILIES[case.family],
        make=case.make,
        scheduler=case.scheduler,
        index={},
        latent=(channels, 1, height, width),
        cond=Condition(torch.empty(1, *case.text, device="meta"), pooled, extra={"size": size}),
        told="a case of the benchmark",
    )


def build(
    case: Case, tuning: Tuning, device: torch.device | str, frozen: torch.dtype, autocast: torch.dtype | None = None
) -> tuple[Denoiser, Reference]:
    """Make policy and reference as `diffpo train` does, with random weights made on `device`.

    Args:
        case: What to make.
        tuning: What of it is trained, in float32.
        device: Where it is made.
        frozen: Dtype of frozen weights.
        autocast: What autocast makes of products; None: there is no autocast.
    """
    name: Any = str(frozen).removeprefix("torch.")
    return assemble(outline_of(case), replace(tuning, dtype=name), torch.float32, device, autocast)


def collate(rows: list[dict[str, Tensor]], first: int) -> PairBatch:
    """Stack rows into a batch; `first` is the number of its first row in the table."""
    stacked = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    cond = Condition(stacked["text"], stacked.get("pooled"), extra={"size": stacked["size"]})
    index = torch.arange(first, first + len(rows), device="cpu")
    return PairBatch(Pair(stacked["chosen"], stacked["rejected"]), Pair(cond, cond), torch.ones(len(rows)), index=index)


@dataclass(frozen=True)
class Cost:
    """What one pair costs by arithmetic, and the weights by count."""

    parameters: int
    """Of the network, adapters left out."""
    trained: int
    """Parameters that the optimizer changes."""
    forward: float
    """FLOPs of one forward over one image."""
    policy: float
    """FLOPs per pair of the policy's forward and backward, without recomputation."""
    reference: float
    """FLOPs per pair of the reference's forward."""

    def pair(self, method: str) -> float:
        """Model FLOPs per pair, an inversion's mean included."""
        inversion = make_method(method).inversion
        return self.policy + self.reference + (0.0 if inversion is None else inversion.rows * self.forward)

    def static_bytes(self, frozen_bytes: int, state_bytes: int) -> int:
        """Bytes of weights, gradients and optimizer state: what is there before any activation.

        Frozen are the base of an adapter, or the copy of a fully tuned network.

        Args:
            frozen_bytes: Bytes of one frozen number.
            state_bytes: Bytes of optimizer state per trained number.
        """
        return self.parameters * frozen_bytes + self.trained * (4 + 4 + state_bytes)


def count(case: Case, tuning: Tuning) -> Cost:
    """Run one pair's step on the meta device and count."""
    tuning, method = replace(tuning, attention="native", gradient_checkpointing=False), make_method("dpo")
    policy, reference = build(case, tuning, "meta", torch.float32)
    traced = trace(policy, reference, method, pairs_of(outline_of(case), 1, method.sides), None)
    weights = weigh(policy, reference, "adamw")
    return Cost(
        parameters=weights.parameters,
        trained=weights.trained,
        forward=traced.reference_flops / 2,
        policy=traced.flops - traced.reference_flops,
        reference=traced.reference_flops,
    )
