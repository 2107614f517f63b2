"""What `bench.py` measures: real architectures at full size, the shapes world's, and tiny ones; and what they cost.

Weights are random (speed and memory do not depend on them) and made where they are used, in their final dtype. FLOPs
are counted on the meta device, which needs no memory, with attention as plain matrix products: fused kernels do the
same arithmetic but are not all known to torch's counter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffpo.core.process import NoiseProcess, Time
from diffpo.core.step import preference_step
from diffpo.core.types import Condition, Pair, PairBatch, Rng
from diffpo.methods import METHODS, PairwiseMethod
from diffpo.methods.base import Predictor
from diffpo.models import FAMILIES, Denoiser
from diffpo.models.load import set_attention
from diffpo.models.recomputing import recompute
from diffpo.models.reference import Reference
from diffpo.models.tuning import Full, LoRA, Tuning

DDPM = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon"}

SD15: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD35_MEDIUM: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
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


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make new floating tensors have `dtype` for a while."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def build(
    case: Case, tuning: Tuning, device: torch.device | str, frozen: torch.dtype, autocast: torch.dtype | None = None
) -> tuple[Denoiser, Reference]:
    """Make policy and reference as `diffpo.models.load.load` does, with random weights made on `device`.

    Args:
        case: What to make.
        tuning: What of it is trained, in float32.
        device: Where it is made.
        frozen: Dtype of frozen weights.
        autocast: What autocast makes of products; None: there is no autocast.
    """
    family = FAMILIES[case.family]
    with default_dtype(frozen), torch.device(device):
        network: Any = case.make()
    network.to(device, frozen)  # tables made by numpy know no default device
    tuning.prepare(network, family, torch.float32)
    network.to(device)
    if tuning.gradient_checkpointing:
        recompute(network, family.blocks, tuning.recomputed_share)
    set_attention(network, tuning.attention)
    policy = family(network, family.make_process(dict(case.scheduler), Time()))
    policy.network.train()
    return policy, tuning.reference(policy, frozen, autocast)


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


class Counted:
    """A predictor that adds up what its forwards cost."""

    def __init__(self, inner: Predictor, counter: FlopCounterMode):
        """Count the calls of `inner` that happen while `counter` is on."""
        self.inner, self.counter, self.flops = inner, counter, 0.0

    @property
    def process(self) -> NoiseProcess:
        """The inner one's."""
        return self.inner.process

    def lockstep(self, n: int) -> int:
        """Ask the inner one."""
        return self.inner.lockstep(n)

    def predict(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Pass on, and count."""
        before = self.counter.get_total_flops()
        answer = self.inner.predict(z, t, cond)
        self.flops += self.counter.get_total_flops() - before
        return answer


def count(case: Case, tuning: Tuning) -> Cost:
    """Run one pair's step on the meta device and count."""
    tuning = replace(tuning, attention="native", gradient_checkpointing=False)
    policy, reference = build(case, tuning, "meta", torch.float32)
    batch = collate(case.rows(1, device="meta"), 0).to("meta", torch.float32)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        counted, judge = Counted(policy, counter), Counted(reference, counter)
        preference_step(make_method("dpo"), counted, judge, batch, Rng(0, 0, batch.index)).loss.sum().backward()
        total = counter.get_total_flops()
    parameters = dict(policy.network.named_parameters())
    return Cost(
        parameters=sum(p.numel() for name, p in parameters.items() if ".lora_" not in name),
        trained=sum(p.numel() for p in parameters.values() if p.requires_grad),
        forward=judge.flops / 2,
        policy=total - judge.flops,
        reference=judge.flops,
    )
