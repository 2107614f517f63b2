"""Stable Diffusion 3 and 3.5: a diffusion transformer trained by rectified flow; the network's time is 1000 sigma."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffpo.core.types import Condition
from diffpo.models.base import Width, images_only
from diffpo.models.flow import Flow
from diffpo.models.user_adapter import TextAttention


class SD3(Flow):
    """`StableDiffusion3Pipeline`'s transformer."""

    pipelines = ("StableDiffusion3Pipeline",)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    blocks = ("JointTransformerBlock",)
    widths = (
        Width("text width", {"text_encoder_3": "d_model"}, itemgetter("joint_attention_dim")),
        Width(
            "pooled text width",
            {"text_encoder": "projection_dim", "text_encoder_2": "projection_dim"},
            itemgetter("pooled_projection_dim"),
        ),
    )
    text_attention = TextAttention(
        r"transformer_blocks\.\d+\.attn", "add_k_proj", "norm_added_k", through="context_embedder"
    )
    token_limits: ClassVar = {"tokenizer_3": 256}  # the pipeline's max_sequence_length; T5 itself knows no limit

    def answer(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        assert cond.pooled is not None, "SD3 conditions carry a pooled text state"
        text, pooled = cond.text.to(self.dtype), cond.pooled.to(self.dtype)
        told = self.told(t, z)
        return images_only(lambda x: self.network(x, text, pooled, told, return_dict=False)[0], z.to(self.dtype))

    @staticmethod
    def encode_prompt(pipeline: Any, prompt: str, network: Mapping[str, Any]) -> dict[str, Tensor]:
        """States of both CLIP encoders, then T5's (the network attends to the padding too), and the pooled state.

        Without T5, which many leave out for its size, zeros stand in its place: so do they when the pipeline samples.
        """
        return SD3.encode_prompts(pipeline, [prompt], network)[0]

    @classmethod
    def encode_prompts(
        cls, pipeline: Any, prompts: Sequence[str], network: Mapping[str, Any]
    ) -> list[dict[str, Tensor]]:
        prompts = list(prompts)
        if pipeline.text_encoder_3 is None:
            clip = [pipeline._get_clip_prompt_embeds(prompts, clip_model_index=i) for i in (0, 1)]
            own = torch.cat([states for states, _ in clip], dim=-1)
            length = own.shape[1] + SD3.token_limits["tokenizer_3"]
            texts = own.new_zeros(len(own), length, network["joint_attention_dim"])
            texts[:, : own.shape[1], : own.shape[2]] = own
            pooled = torch.cat([pooled for _, pooled in clip], dim=-1)
        else:
            how = {"device": pipeline.device, "do_classifier_free_guidance": False}
            texts, _, pooled, _ = pipeline.encode_prompt(prompts, prompts, prompts, **how)
        return [{"text": text, "pooled": one} for text, one in zip(texts, pooled, strict=True)]
