"""HunyuanVideo (arXiv:2412.03603): a video transformer, a rectified flow distilled with guidance; time is 1000 sigma.

The text is a language model's states of the prompt behind an instruction, with a mask, and CLIP's pooled state.
"""

from collections.abc import Mapping
from operator import itemgetter
from typing import Any, ClassVar

from torch import Tensor

from diffpo.core.types import Condition
from diffpo.errors import UserError
from diffpo.models.base import Asked, Width
from diffpo.models.flow import Flow


class HunyuanVideo(Flow):
    """`HunyuanVideoPipeline`'s transformer."""

    pipelines = ("HunyuanVideoPipeline",)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    blocks = ("HunyuanVideoTransformerBlock", "HunyuanVideoSingleTransformerBlock")
    widths = (
        Width("text width", {"text_encoder": "hidden_size"}, itemgetter("text_embed_dim")),
        Width("pooled text width", {"text_encoder_2": "hidden_size"}, itemgetter("pooled_projection_dim")),
    )
    most_frames = None
    usual_frames = 129  # the pipeline's default
    fps = 24.0
    sides = 16
    token_limits: ClassVar = {"tokenizer": 256, "tokenizer_2": 77}  # the instruction before the prompt comes on top

    def answer(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        assert cond.mask is not None, "HunyuanVideo's conditions carry a mask"
        assert cond.pooled is not None, "HunyuanVideo's conditions carry a pooled text state"
        return self.network(
            hidden_states=z.to(self.dtype),
            timestep=self.told(t, z),
            encoder_hidden_states=cond.text.to(self.dtype),
            encoder_attention_mask=cond.mask.to(z.device),
            pooled_projections=cond.pooled.to(self.dtype),
            guidance=self.told_guidance(z),
            return_dict=False,
        )[0]

    @staticmethod
    def encode_prompt(pipeline: Any, prompt: str, network: Mapping[str, Any]) -> dict[str, Tensor]:
        """The language model's states before its last two layers, which of them hold a token, and CLIP's pooled one."""
        text, pooled, mask = pipeline.encode_prompt(prompt)
        return {"text": text[0], "pooled": pooled[0], "mask": mask[0].bool()}

    @staticmethod
    def factors(vae: Mapping[str, Any]) -> tuple[int, int]:
        return vae["spatial_compression_ratio"], vae["temporal_compression_ratio"]

    @staticmethod
    def encode_media(pipeline: Any, frames: Tensor) -> tuple[Tensor, None]:
        """The posterior's mode, scaled."""
        return pipeline.vae.encode(frames).latent_dist.mode().float() * pipeline.vae.config.scaling_factor, None

    @classmethod
    def sampling(cls, asked: Asked) -> dict[str, Any]:
        if asked.negative is not None:
            raise UserError("HunyuanVideo has guidance built in, and no negative prompt: leave negative_prompt out.")
        return super().sampling(asked)
