"""Qwen-Image (arXiv:2508.02324): a transformer over packed latents, a rectified flow; its time is sigma.

The text is a language model's states of the prompt alone, as long as it is. The VAE is one for clips: a picture is one
frame.
"""

from collections.abc import Mapping
from operator import itemgetter
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffpo.core.types import Condition
from diffpo.models.base import Asked, Width
from diffpo.models.flow import channel_statistics
from diffpo.models.packed import Packed


class QwenImage(Packed):
    """`QwenImagePipeline`'s transformer."""

    pipelines = ("QwenImagePipeline",)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    blocks = ("QwenImageTransformerBlock",)
    unit = 1.0
    sides = 16
    latent_channels = Width("latent channels", {"vae": "z_dim"}, lambda network: network["in_channels"] // 4)
    widths = (Width("text width", {"text_encoder": "text_config.hidden_size"}, itemgetter("joint_attention_dim")),)
    token_limits: ClassVar = {"tokenizer": 1024}  # of the prompt; the pipeline puts it into a template

    def arguments(self, z: Tensor, cond: Condition) -> dict[str, Any]:
        assert cond.mask is not None, "Qwen-Image's conditions carry a mask: captions differ in length"
        return {
            "encoder_hidden_states": cond.text.to(self.dtype),
            "encoder_hidden_states_mask": cond.mask.to(z.device),
            "img_shapes": [[(1, z.shape[3] // self.patch, z.shape[4] // self.patch)]] * len(z),
            "guidance": self.told_guidance(z),
        }

    @classmethod
    def unheard(cls, network: Mapping[str, Any]) -> tuple[str, ...]:
        last = f"transformer_blocks.{network['num_layers'] - 1}"
        return f"{last}.attn.to_add_out", f"{last}.txt_mlp"

    @staticmethod
    def encode_prompt(pipeline: Any, prompt: str, network: Mapping[str, Any]) -> dict[str, Tensor]:
        """The language model's last states of the prompt's tokens, without the template around it."""
        text, _ = pipeline.encode_prompt(prompt)
        return {"text": text[0], "mask": torch.ones(text.shape[1], dtype=torch.bool)}

    @staticmethod
    def factors(vae: Mapping[str, Any]) -> tuple[int, int]:
        return 2 ** len(vae["temperal_downsample"]), 1

    @staticmethod
    def encode_media(pipeline: Any, frames: Tensor) -> tuple[Tensor, Tensor]:
        posterior = pipeline.vae.encode(frames).latent_dist
        mean, std = channel_statistics(pipeline.vae.config, frames)
        return (posterior.mean.float() - mean) / std, posterior.std.float() / std

    @classmethod
    def sampling(cls, asked: Asked) -> dict[str, Any]:
        """Guidance is `true_cfg_scale`, which acts only where there is a negative prompt: a space, as published."""
        told = asked.usual
        return told | {
            "guidance_scale": None,
            "true_cfg_scale": asked.guidance,
            "negative_prompt": told.get("negative_prompt", [" "] * asked.rows),
        }
