"""PixArt-Sigma (arXiv:2403.04692): a diffusion transformer that attends to T5's states, epsilon, integer times.

Its network answers twice the latents' channels: epsilon, and a variance that was learned beside it and is not trained
here.
"""

from collections.abc import Mapping
from operator import itemgetter
from typing import Any, ClassVar

from torch import Tensor

from diffpo.core.types import Condition
from diffpo.models.base import Denoiser, Width, discrete_process, images_only


class PixArt(Denoiser):
    """`PixArtSigmaPipeline`'s transformer; diffusers reads no LoRA for it, so an adapter is PEFT's folder."""

    pipelines = ("PixArtSigmaPipeline",)
    components = ("transformer",)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    blocks = ("BasicTransformerBlock",)
    patch = 2
    widths = (Width("text width", {"text_encoder": "d_model"}, itemgetter("caption_channels")),)
    token_limits: ClassVar = {"tokenizer": 300}  # the pipeline's max_sequence_length; T5 itself knows no limit
    make_process = staticmethod(discrete_process)

    def predict(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        assert cond.mask is not None, "PixArt conditions carry a mask: T5's padding is not attended to"
        t, text, mask = t.to(z.device), cond.text.to(self.dtype), cond.mask.to(z.device)
        sizes = {"resolution": None, "aspect_ratio": None}  # PixArt-alpha at 1024 pixels is told them, Sigma is not
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

    @staticmethod
    def encode_prompt(pipeline: Any, prompt: str, network: Mapping[str, Any]) -> dict[str, Tensor]:
        """T5's states, and which of them belong to the prompt."""
        text, mask, _, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False, device=pipeline.device)
        return {"text": text[0], "mask": mask[0].bool()}
