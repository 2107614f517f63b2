"""LTX-Video (arXiv:2501.00103): a video transformer over packed latents, a rectified flow; its time is 1000 sigma.

The VAE is causal and deep: eight frames and 32 x 32 pixels become one token. Positions are told in seconds and pixels,
so that the rate of a clip counts. How far times are shifted grows with the clip.
"""

from collections.abc import Mapping
from operator import itemgetter
from typing import Any, ClassVar

from torch import Tensor

from diffpo.core.types import Condition
from diffpo.models.base import Asked, Width
from diffpo.models.packed import Packed


class LTX(Packed):
    """`LTXPipeline`'s transformer."""

    pipelines = ("LTXPipeline",)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    blocks = ("LTXVideoTransformerBlock",)
    patch = 1
    widths = (Width("text width", {"text_encoder": "d_model"}, itemgetter("caption_channels")),)
    most_frames = None
    usual_frames = 161  # the pipeline's defaults
    fps = 25.0
    sides = 32
    cell: ClassVar[tuple[int, int]] = (8, 32)
    """Frames and pixels of a token: the units of its positions."""
    token_limits: ClassVar = {"tokenizer": 128}  # the pipeline's max_sequence_length; T5 itself knows no limit

    def arguments(self, z: Tensor, cond: Condition) -> dict[str, Any]:
        assert cond.mask is not None, "LTX conditions carry a mask: T5's padding is not attended to"
        frames, pixels = self.cell
        return {
            "encoder_hidden_states": cond.text.to(self.dtype),
            "encoder_attention_mask": cond.mask.to(z.device),
            "num_frames": z.shape[2],
            "height": z.shape[3],
            "width": z.shape[4],
            "rope_interpolation_scale": (frames / self.rate, pixels, pixels),
        }

    @staticmethod
    def encode_prompt(pipeline: Any, prompt: str, network: Mapping[str, Any]) -> dict[str, Tensor]:
        """T5's states, and which of them belong to the prompt."""
        text, mask, _, _ = pipeline.encode_prompt(
            prompt, do_classifier_free_guidance=False, max_sequence_length=LTX.token_limits["tokenizer"]
        )
        return {"text": text[0], "mask": mask[0].bool()}

    @staticmethod
    def factors(vae: Mapping[str, Any]) -> tuple[int, int]:
        halved = 2 ** sum(vae["spatio_temporal_scaling"])
        space, time = vae.get("spatial_compression_ratio"), vae.get("temporal_compression_ratio")
        return space or vae["patch_size"] * halved, time or vae["patch_size_t"] * halved

    @staticmethod
    def encode_media(pipeline: Any, frames: Tensor) -> tuple[Tensor, None]:
        """The posterior's mode, normalised channel by channel with statistics that lie among the VAE's weights."""
        mode = pipeline.vae.encode(frames).latent_dist.mode().float()
        mean, std = _statistics(pipeline.vae)
        return (mode - mean) / std, None

    @classmethod
    def sampling(cls, asked: Asked) -> dict[str, Any]:
        return super().sampling(asked) | {"frame_rate": asked.fps or cls.fps}


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the latents, `[1 c 1 1 1]` each."""
    mean, std = (x.float().reshape(1, -1, 1, 1, 1) for x in (vae.latents_mean, vae.latents_std))
    return mean, std / vae.config.scaling_factor
