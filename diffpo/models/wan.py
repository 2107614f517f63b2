"""Wan 2.1 (arXiv:2503.20314) and 2.2's 5B: a video transformer trained by rectified flow; its time is 1000 sigma.

The text is UMT5's states, and zeros up to 512 tokens, to which the network attends. The VAE is causal: its first latent
frame is the first frame, each further one is four frames.
"""

from collections.abc import Mapping
from operator import itemgetter
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from diffpo.core.types import Condition
from diffpo.errors import UserError
from diffpo.models.base import Width
from diffpo.models.flow import Flow, channel_statistics


class Wan(Flow):
    """`WanPipeline`'s transformer."""

    pipelines = ("WanPipeline",)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    blocks = ("WanTransformerBlock",)
    latent_channels = Width("latent channels", {"vae": "z_dim"}, itemgetter("in_channels"))
    widths = (Width("text width", {"text_encoder": "d_model"}, itemgetter("text_dim")),)
    most_frames = None
    usual_frames = 81  # the pipeline's default
    fps = 16.0  # arXiv:2503.20314, section 4.2
    sides = 16
    whole_parts = ("vae",)  # as the model's authors sample
    token_limits: ClassVar = {"tokenizer": 512}  # the pipeline's max_sequence_length

    @classmethod
    def reads(cls, index: Mapping[str, Any]) -> bool:
        return super().reads(index) and not index.get("expand_timesteps")

    @classmethod
    def check_index(cls, index: Mapping[str, Any]) -> None:
        super().check_index(index)
        if any(index.get("transformer_2") or ()):
            raise UserError(
                "this is a Wan 2.2 model of two experts, which diffpo does not train; give one of a single network, "
                "such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers or Wan-AI/Wan2.2-TI2V-5B-Diffusers"
            )

    def predict(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        assert cond.mask is not None, "Wan conditions carry a mask: beyond the prompt the text is zero"
        text = cond.text.where(cond.mask[..., None].to(cond.text.device), 0.0)
        text = pad(text, (0, 0, 0, self.token_limits["tokenizer"] - text.shape[1]))
        return self.network(z.to(self.dtype), self.told(t, z), text.to(self.dtype), return_dict=False)[0]

    @staticmethod
    def encode_prompt(pipeline: Any, prompt: str, network: Mapping[str, Any]) -> dict[str, Tensor]:
        """UMT5's states of the prompt's own tokens; the zeros behind them take no room in a cache."""
        text, _ = pipeline.encode_prompt(
            prompt, do_classifier_free_guidance=False, max_sequence_length=Wan.token_limits["tokenizer"]
        )
        own = text[0][text[0].any(dim=-1)]
        return {"text": own, "mask": torch.ones(len(own), dtype=torch.bool)}

    @staticmethod
    def factors(vae: Mapping[str, Any]) -> tuple[int, int]:
        return vae.get("scale_factor_spatial", 8), vae.get("scale_factor_temporal", 4)

    @staticmethod
    def encode_media(pipeline: Any, frames: Tensor) -> tuple[Tensor, None]:
        """The posterior's mode; the VAE reads four frames at a time, so that memory does not grow with the clip."""
        mean, std = channel_statistics(pipeline.vae.config, frames)
        mode = pipeline.vae.encode(frames).latent_dist.mode().float()
        return (mode - mean) / std, None

    @staticmethod
    def decode_media(pipeline: Any, latent: Tensor) -> Tensor:
        vae = pipeline.vae
        mean, std = channel_statistics(vae.config, latent)
        return vae.decode((latent * std + mean).to(vae.dtype), return_dict=False)[0]


class Wan22Small(Wan):
    """Wan 2.2's 5B, with a VAE that makes 16 x 16 pixels a latent cell.

    The pipeline tells its network a time for each token. Where a clip is made of a text alone they are all one, and the
    network makes the same of that one time for the whole clip, which it is told here.
    """

    usual_frames = 121
    fps = 24.0
    sides = 32

    @classmethod
    def reads(cls, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in cls.pipelines and bool(index.get("expand_timesteps"))
