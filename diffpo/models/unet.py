"""Stable Diffusion 1.x and 2.x: a UNet with text cross-attention, epsilon or v, integer times."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffpo.core.types import Condition, moved
from diffpo.models.base import Denoiser, Width, images_only
from diffpo.models.discrete import discrete_process
from diffpo.models.fusing import can_fuse, fuse
from diffpo.models.low_rank import product_dtype
from diffpo.models.user_adapter import TextAttention

STACK = "Transformer2DModel"
"""What diffusers calls the transformers that stand between two blocks of convolutions."""


class UNet(Denoiser):
    """`StableDiffusionPipeline`'s UNet."""

    pipelines = ("StableDiffusionPipeline",)
    components = ("unet",)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    blocks = ("BasicTransformerBlock", "ResnetBlock2D")
    convolutional = True
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
        t, text = moved(t, z.device), self.states(cond.text)
        return self.ask(lambda x: self.network(x, t, text, return_dict=False)[0], z)

    def states(self, text: Tensor) -> Tensor:
        """Cast text states to what products make of them: once, and not in each attention, which would keep its own."""
        text = text.to(self.dtype)
        return text.to(product_dtype(text))

    def ask(self, network: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        """Ask a network of images `[b c h w]`, in its dtype and layout, about latents `[b c 1 h w]`."""
        return images_only(lambda x: network(x.contiguous(memory_format=self.layout)), z.to(self.dtype))

    def can_fuse(self, device: torch.device) -> bool:
        """Whether kernels of ours for what stands between the products run there; without images, as elsewhere."""
        return can_fuse(device) if self.convolutional else super().can_fuse(device)

    def fuse(self) -> None:
        super().fuse()
        if self.convolutional:
            self.put_channels_last()
            fuse(self.network)

    def regions(self) -> list[nn.Module]:
        """Take a stack of one transformer as a whole, with the norm and the projections around it."""
        shallow = [m for m in self.network.modules() if type(m).__name__ == STACK and len(m.transformer_blocks) == 1]
        inside = {id(block) for stack in shallow for block in stack.modules()}
        return shallow + [region for region in super().regions() if id(region) not in inside]

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
