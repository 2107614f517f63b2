"""The sizes of a few published models, so that what training them takes can be told before anything is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from diffpo.core.types import Condition

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


@dataclass(frozen=True, kw_only=True)
class Known:
    """A published model whose sizes are written here."""

    family: str
    """Key of `FAMILIES`."""
    network: str
    """Class of its network in diffusers."""
    config: Mapping[str, Any]
    """The network's configuration, where it differs from the class's defaults."""
    channels: int
    """Of latents, which have an eighth of the pixels a side."""
    text: tuple[int, int]
    """Number and width of a prompt's text states."""
    pooled: int | None = None
    """Width of the pooled state, for the families that use one."""
    scheduler: Mapping[str, Any] = field(default_factory=lambda: DDPM)
    """Configuration of the pipeline's scheduler."""

    def make(self) -> nn.Module:
        """Make the network on the default device, in the default dtype."""
        import diffusers

        return getattr(diffusers, self.network)(**self.config)

    def condition(self, rows: int = 1) -> Condition:
        """What the network is told of some images, on the meta device."""
        pooled = None if self.pooled is None else torch.empty(rows, self.pooled, device="meta")
        size = torch.empty(rows, 6, dtype=torch.long, device="meta")
        return Condition(torch.empty(rows, *self.text, device="meta"), pooled, extra={"size": size})


KNOWN = {
    "sd15": Known(family="unet", network="UNet2DConditionModel", config=SD15, channels=4, text=(77, 768)),
    "sdxl": Known(family="sdxl", network="UNet2DConditionModel", config=SDXL, channels=4, text=(77, 2048), pooled=1280),
    "sd35m": Known(  # 77 states of the CLIP encoders, then 256 of T5
        family="sd3",
        network="SD3Transformer2DModel",
        config=SD35_MEDIUM,
        channels=16,
        text=(333, 4096),
        pooled=2048,
        scheduler={"shift": 3.0},
    ),
}
"""By a short name."""
PUBLISHED = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd15",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "stabilityai/stable-diffusion-3.5-medium": "sd35m",
}
"""Hub ids of known models."""
