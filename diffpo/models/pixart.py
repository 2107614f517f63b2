"""PixArt-Sigma (arXiv:2403.04692) and -alpha (arXiv:2310.00426): transformers that attend to T5's states, epsilon.

Times are integers. Alpha for 1024 pixels is also told each picture's size. The network answers twice the latents'
channels: epsilon, and a variance that was learned beside it and is not trained here.
"""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, ClassVar

from torch import Tensor

from diffpo.core.types import Condition, moved
from diffpo.models.base import Denoiser, Width, images_only
from diffpo.models.discrete import discrete_process
from diffpo.models.user_adapter import TextAttention


class PixArt(Denoiser):
    """`PixArtSigmaPipeline`'s transformer; diffusers reads no LoRA for it, so an adapter is PEFT's folder."""

    pipelines = ("PixArtSigmaPipeline",)
    components = ("transformer",)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    blocks = ("BasicTransformerBlock",)
    patch = 2
    widths = (Width("text width", {"text_encoder": "d_model"}, itemgetter("caption_channels")),)
    token_limits: ClassVar = {"tokenizer": 300}  # the pipeline's max_sequence_length; T5 itself knows no limit
    text_attention = TextAttention(r".+\.attn2")
    make_process = staticmethod(discrete_process)

    def answer(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        assert cond.mask is not None, "PixArt conditions carry a mask: T5's padding is not attended to"
        t, text, mask = moved(t, z.device), cond.text.to(self.dtype), cond.mask.to(z.device)
        sizes = self.sizes(cond)
        return images_only(
            lambda x: self.network(
                x,
                encoder_hidden_states=text,
                timestep=t,
                added_cond_kwargs=sizes,
                encoder_attention_mask=mask,
                return_dict=False,
            )[0][:, : x.shape[1]],
            z.to(self.dtype),
        )

    def sizes(self, cond: Condition) -> dict[str, Any]:
        """What the network is told of the pictures' sizes: nothing."""
        return {"resolution": None, "aspect_ratio": None}

    @staticmethod
    def encode_prompt(pipeline: Any, prompt: str, network: Mapping[str, Any]) -> dict[str, Tensor]:
        """T5's states, and which of them belong to the prompt."""
        return PixArt.encode_prompts(pipeline, [prompt], network)[0]

    @classmethod
    def encode_prompts(
        cls, pipeline: Any, prompts: Sequence[str], network: Mapping[str, Any]
    ) -> list[dict[str, Tensor]]:
        how = {"do_classifier_free_guidance": False, "device": pipeline.device}
        texts, masks, _, _ = pipeline.encode_prompt(list(prompts), **how)
        return [{"text": text, "mask": mask.bool()} for text, mask in zip(texts, masks, strict=True)]


class PixArtAlpha(PixArt):
    """`PixArtAlphaPipeline`'s transformer: shorter texts, and sizes in the model for 1024 pixels."""

    pipelines = ("PixArtAlphaPipeline",)
    token_limits: ClassVar = {"tokenizer": 120}

    def sizes(self, cond: Condition) -> dict[str, Any]:
        """Height and width `[b 2]` that a picture is brought to, and their ratio `[b 1]`, as the pipeline says them."""
        if self.config["sample_size"] != 128:
            return super().sizes(cond)
        resolution = cond.extra["size"][:, 4:].to(cond.text.device, self.dtype)
        return {"resolution": resolution, "aspect_ratio": resolution[:, :1] / resolution[:, 1:]}
