"""SANA (arXiv:2410.10629): a transformer with linear attention on deeply compressed latents, a rectified flow.

Its autoencoder is deterministic, and 32 pixels a side become one latent cell. The text is Gemma's states of a written
instruction and the prompt; the sampler's empty text has no instruction.
"""

import inspect
from collections.abc import Mapping
from operator import itemgetter
from typing import Any, ClassVar

from torch import Tensor

from diffpo.core.types import Condition
from diffpo.models.base import Asked, Width, images_only
from diffpo.models.flow import Flow


class Sana(Flow):
    """`SanaPipeline`'s transformer."""

    pipelines = ("SanaPipeline",)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    blocks = ("SanaTransformerBlock",)
    patch = 1
    sides = 32
    widths = (Width("text width", {"text_encoder": "hidden_size"}, itemgetter("caption_channels")),)
    token_limits: ClassVar = {"tokenizer": 300}  # of the prompt; the pipeline puts an instruction before it

    def answer(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        assert cond.mask is not None, "SANA's conditions carry a mask: Gemma's padding is not attended to"
        told = self.told(t, z) * self.config["timestep_scale"]
        text, mask = cond.text.to(self.dtype), cond.mask.to(z.device)
        return images_only(
            lambda x: self.network(
                x, encoder_hidden_states=text, encoder_attention_mask=mask, timestep=told, return_dict=False
            )[0][:, : x.shape[1]],
            z.to(self.dtype),
        )

    @staticmethod
    def encode_prompt(pipeline: Any, prompt: str, network: Mapping[str, Any]) -> dict[str, Tensor]:
        """Gemma's states, 300 positions, and which of them hold a token."""
        sampler = inspect.signature(type(pipeline).__call__).parameters
        text, mask, _, _ = pipeline.encode_prompt(
            prompt,
            do_classifier_free_guidance=False,
            complex_human_instruction=sampler["complex_human_instruction"].default if prompt else None,
        )
        return {"text": text[0], "mask": mask[0].bool()}

    @staticmethod
    def factors(vae: Mapping[str, Any]) -> tuple[int, int]:
        return 2 ** (len(vae["encoder_block_out_channels"]) - 1), 1

    @staticmethod
    def encode_media(pipeline: Any, frames: Tensor) -> tuple[Tensor, None]:
        latent = images_only(lambda x: pipeline.vae.encode(x).latent, frames)
        return latent.float() * pipeline.vae.config.scaling_factor, None

    @classmethod
    def sampling(cls, asked: Asked) -> dict[str, Any]:
        """The pipeline rounds to the sizes it was trained on, and crops, unless a size is asked for."""
        told = asked.usual | {"use_resolution_binning": asked.size is None}
        return told | {"negative_prompt": asked.negative or ""}
