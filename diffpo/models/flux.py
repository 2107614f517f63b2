"""FLUX.1: a transformer over packed latents, distilled with guidance (dev) or without (schnell); its time is sigma.

T5's padding is attended to. How far times are shifted grows with the picture.
"""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, ClassVar

from torch import Tensor

from diffpo.core.types import Condition
from diffpo.errors import UserError
from diffpo.models.base import Asked, Width
from diffpo.models.packed import Packed, grid
from diffpo.models.user_adapter import TextAttention


class Flux(Packed):
    """`FluxPipeline`'s transformer."""

    pipelines = ("FluxPipeline",)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    blocks = ("FluxTransformerBlock", "FluxSingleTransformerBlock")
    unit = 1.0
    sides = 16
    latent_channels = Width("latent channels", {"vae": "latent_channels"}, lambda network: network["in_channels"] // 4)
    widths = (
        Width("text width", {"text_encoder_2": "d_model"}, itemgetter("joint_attention_dim")),
        Width("pooled text width", {"text_encoder": "hidden_size"}, itemgetter("pooled_projection_dim")),
    )
    text_attention = TextAttention(  # as in diffusers' IP-Adapters for FLUX.1
        r"transformer_blocks\.\d+\.attn",
        "add_k_proj",
        key_norm=None,
        through="context_embedder",
        adds="after_block",
        halves="apart",
        ip_biases=True,
    )
    token_limits: ClassVar = {"tokenizer_2": 512}  # the pipeline's max_sequence_length; T5 itself knows no limit

    def arguments(self, z: Tensor, cond: Condition) -> dict[str, Any]:
        assert cond.pooled is not None, "FLUX.1's conditions carry a pooled text state"
        text = cond.text.to(self.dtype)
        return {
            "encoder_hidden_states": text,
            "pooled_projections": cond.pooled.to(self.dtype),
            "guidance": self.told_guidance(z),
            "txt_ids": z.new_zeros(text.shape[1], 3),
            "img_ids": grid(z.shape[3] // 2, z.shape[4] // 2, axes=3, like=z),
        }

    @staticmethod
    def encode_prompt(pipeline: Any, prompt: str, network: Mapping[str, Any]) -> dict[str, Tensor]:
        """T5's states, all 512 positions, and CLIP's pooled state."""
        return Flux.encode_prompts(pipeline, [prompt], network)[0]

    @classmethod
    def encode_prompts(
        cls, pipeline: Any, prompts: Sequence[str], network: Mapping[str, Any]
    ) -> list[dict[str, Tensor]]:
        texts, pooled, _ = pipeline.encode_prompt(list(prompts), None, max_sequence_length=512)
        return [{"text": text, "pooled": one} for text, one in zip(texts, pooled, strict=True)]

    @classmethod
    def sampling(cls, asked: Asked) -> dict[str, Any]:
        if asked.negative is not None:
            raise UserError("FLUX.1 has guidance built in, and no negative prompt: leave negative_prompt out.")
        return asked.usual
