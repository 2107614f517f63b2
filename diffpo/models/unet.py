"""Stable Diffusion 1.x and 2.x: a UNet with text cross-attention, epsilon or v, integer times."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from diffpo.core.types import Condition
from diffpo.models.base import Denoiser, Width, discrete_process, images_only
from diffpo.models.user_adapter import TextAttention


class UNet(Denoiser):
    """`StableDiffusionPipeline`'s UNet."""

    pipelines = ("StableDiffusionPipeline",)
    components = ("unet",)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    blocks = ("BasicTransformerBlock", "ResnetBlock2D")
    widths = (
        Width(
            "text width",
            {"text_encoder": "hidden_size"},
            lambda unet: unet.get("encoder_hid_dim") or unet["cross_attention_dim"],
        ),
    )
    half = "float16"
    text_attention = TextAttention(r".+\.attn2", ip_numbers=(1, 2))
    make_process = staticmethod(discrete_process)

    def answer(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        t, text = t.to(z.device), cond.text.to(self.dtype)
        return images_only(lambda x: self.network(x, t, text, return_dict=False)[0], z.to(self.dtype))

    @staticmethod
    def encode_prompt(pipeline: Any, prompt: str, network: Mapping[str, Any]) -> dict[str, Tensor]:
        """Last hidden states, all positions: the UNet attends to the padding too."""
        text, _ = pipeline.encode_prompt(prompt, pipeline.device, 1, False)
        return {"text": text[0]}

    @classmethod
    def encode_prompts(
        cls, pipeline: Any, prompts: Sequence[str], network: Mapping[str, Any]
    ) -> list[dict[str, Tensor]]:
        texts, _ = pipeline.encode_prompt(list(prompts), pipeline.device, 1, False)
        return [{"text": text} for text in texts]
