"""Stable Diffusion XL: a UNet that is also told the pooled text state, and each image's original size and crop."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from diffpo.core.types import Condition, moved
from diffpo.models.base import Width
from diffpo.models.unet import UNet


class SDXL(UNet):
    """`StableDiffusionXLPipeline`'s UNet."""

    pipelines = ("StableDiffusionXLPipeline",)
    widths = (
        Width(
            "text width",
            {"text_encoder": "hidden_size", "text_encoder_2": "hidden_size"},
            itemgetter("cross_attention_dim"),
        ),
        Width(
            "pooled text width",
            {"text_encoder_2": "projection_dim"},
            lambda unet: unet["projection_class_embeddings_input_dim"] - 6 * unet["addition_time_embed_dim"],
        ),
    )

    def answer(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """See `Denoiser.predict`; `cond.extra["size"]` `[b 6]` is SDXL's `time_ids`, in its own order."""
        assert cond.pooled is not None, "SDXL conditions carry a pooled text state"
        t, text = moved(t, z.device), self.states(cond.text)
        # float32 at least: half precision rounds sizes above 2048
        size = cond.extra["size"].to(z.device, torch.promote_types(self.dtype, torch.float32))
        added = {"text_embeds": cond.pooled.to(self.dtype), "time_ids": size}
        return self.ask(lambda x: self.network(x, t, text, added_cond_kwargs=added, return_dict=False)[0], z)

    @staticmethod
    def encode_prompt(pipeline: Any, prompt: str, network: Mapping[str, Any]) -> dict[str, Tensor]:
        """Penultimate states of both encoders side by side, and the second's pooled state."""
        return SDXL.encode_prompts(pipeline, [prompt], network)[0]

    @classmethod
    def encode_prompts(
        cls, pipeline: Any, prompts: Sequence[str], network: Mapping[str, Any]
    ) -> list[dict[str, Tensor]]:
        how = {"device": pipeline.device, "do_classifier_free_guidance": False}
        texts, _, pooled, _ = pipeline.encode_prompt(list(prompts), **how)
        return [{"text": text, "pooled": one} for text, one in zip(texts, pooled, strict=True)]
