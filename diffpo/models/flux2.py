"""FLUX.2: a transformer over packed latents, distilled with guidance (dev) or without (klein); its time is sigma.

Its latents are patches of 2 x 2 cells, normalised with the running statistics of a batch norm. The text is states of
three layers of a language model side by side, padding included.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffpo.core.types import Condition
from diffpo.errors import UserError
from diffpo.models.base import Asked, Width
from diffpo.models.packed import Packed, grid

STEPS = 50
"""Sampling steps for which times are shifted: the pipeline shifts less, the more steps it takes."""


class Flux2(Packed):
    """`Flux2Pipeline`'s transformer."""

    pipelines = ("Flux2Pipeline",)
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        "to_qkv_mlp_proj",  # of the blocks with one stream; their `to_out` ends like a list of other blocks'
    )
    blocks = ("Flux2TransformerBlock", "Flux2SingleTransformerBlock")
    patch = 1
    unit = 1.0
    sides = 16
    latent_channels = Width("latent channels", {"vae": "latent_channels"}, lambda network: network["in_channels"] // 4)
    widths = (
        Width("text width", {"text_encoder": "text_config.hidden_size"}, lambda x: x["joint_attention_dim"] // 3),
    )
    token_limits: ClassVar = {"tokenizer": 512}  # the pipeline's max_sequence_length, its chat template included

    def arguments(self, z: Tensor, cond: Condition) -> dict[str, Any]:
        text = cond.text.to(self.dtype)
        places = grid(z.shape[3], z.shape[4], axes=3, like=z)
        return {
            "encoder_hidden_states": text,
            "guidance": self.told_guidance(z),
            "txt_ids": grid(text.shape[1], axes=4, like=z),
            "img_ids": torch.cat([places, places.new_zeros(len(places), 1)], dim=1),
        }

    @classmethod
    def mu(cls, scheduler: Mapping[str, Any], tokens: int) -> float:
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        return compute_empirical_mu(tokens, STEPS)

    @staticmethod
    def encode_prompt(pipeline: Any, prompt: str, network: Mapping[str, Any]) -> dict[str, Tensor]:
        text, _ = pipeline.encode_prompt(prompt)
        return {"text": text[0]}

    @staticmethod
    def factors(vae: Mapping[str, Any]) -> tuple[int, int]:
        return 2 ** len(vae["block_out_channels"]), 1

    @staticmethod
    def encode_media(pipeline: Any, frames: Tensor) -> tuple[Tensor, Tensor]:
        posterior = pipeline.vae.encode(frames.squeeze(2)).latent_dist
        mean, std = _statistics(pipeline.vae)
        return (_patches(posterior.mean.float()) - mean) / std, _patches(posterior.std.float()) / std

    @classmethod
    def to_sampler(cls, latent: Tensor) -> Tensor:
        return latent.squeeze(2)  # the pipeline packs them itself

    @classmethod
    def sampling(cls, asked: Asked) -> dict[str, Any]:
        if asked.negative is not None:
            raise UserError("FLUX.2's pipelines take no negative prompt: leave negative_prompt out.")
        return asked.usual


class Flux2Klein(Flux2):
    """`Flux2KleinPipeline`'s transformer, which is told no guidance."""

    pipelines = ("Flux2KleinPipeline",)
    widths = (Width("text width", {"text_encoder": "hidden_size"}, lambda x: x["joint_attention_dim"] // 3),)


def _patches(cells: Tensor) -> Tensor:
    """Cells `[b c 2h 2w]` as patches of four, `[b 4c 1 h w]`."""
    b, c, h, w = cells.shape
    cells = cells.reshape(b, c, h // 2, 2, w // 2, 2)
    return cells.permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, 1, h // 2, w // 2)


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the patches, `[1 c 1 1 1]` each."""
    mean, variance = (x.float().reshape(1, -1, 1, 1, 1) for x in (vae.bn.running_mean, vae.bn.running_var))
    return mean, torch.sqrt(variance + vae.config.batch_norm_eps)
