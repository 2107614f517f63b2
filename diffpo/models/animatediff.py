"""AnimateDiff (arXiv:2307.04725): Stable Diffusion's UNet with layers that look across frames, epsilon, integer times.

The VAE is one of pictures: each frame has latents of its own.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffpo.core.types import Condition
from diffpo.errors import UserError
from diffpo.media.footage import FrameRule
from diffpo.models.base import Denoiser
from diffpo.models.unet import UNet


class AnimateDiff(UNet):
    """`AnimateDiffPipeline`'s UNet, with its motion modules inside."""

    pipelines = ("AnimateDiffPipeline",)
    text_attention = None  # its network repeats the text for every frame
    convolutional = False  # its images are frames of clips, in five dimensions
    most_frames = 32  # what published motion modules know positions of
    usual_frames = 16  # the pipeline's default, at 8 frames per second
    fps = 8.0

    @classmethod
    def check_index(cls, index: Mapping[str, Any]) -> None:
        super().check_index(index)
        if index["unet"][1] != "UNetMotionModel":
            raise UserError(
                f"its unet is a {index['unet'][1]}, without motion modules: load it with its motion adapter as an "
                "AnimateDiffPipeline, and give the folder that its save_pretrained writes"
            )

    @classmethod
    def frame_rule(cls, vae: Mapping[str, Any], network: Mapping[str, Any]) -> FrameRule:
        known = network.get("motion_max_seq_length", cls.most_frames)
        return replace(super().frame_rule(vae, network), most=min(cls.most_frames, known))

    @classmethod
    def check_frames(cls, count: int, vae: Mapping[str, Any], network: Mapping[str, Any] | None = None) -> None:
        super().check_frames(count, vae, network)
        most = (network or {}).get("motion_max_seq_length", count)
        if count > most:
            raise UserError(f"this AnimateDiff's motion modules know {most} frames; it was given a clip of {count}")

    def answer(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        text = cond.text.to(self.dtype).repeat_interleave(z.shape[2], dim=0)  # each frame has a text
        return self.network(z.to(self.dtype), t.to(z.device), encoder_hidden_states=text, return_dict=False)[0]

    @staticmethod
    def encode_media(pipeline: Any, frames: Tensor) -> tuple[Tensor, Tensor | None]:
        """Frame by frame: of a clip the modes, of a picture the posterior."""
        images = [Denoiser.encode_media(pipeline, frames[:, :, [i]]) for i in range(frames.shape[2])]
        mean = torch.cat([mean for mean, _ in images], dim=2)
        return mean, images[0][1] if len(images) == 1 else None
