"""HunyuanVideo 1.5 (arXiv:2511.18870): a video transformer, a rectified flow; its time is 1000 sigma.

The text has two streams: a language model's states of the prompt behind an instruction, and ByT5's of what the prompt
has in quotation marks, which is to be written in the picture. The network can also be given a first picture; a clip
that is made of a text alone has none, and the channels for one are zero.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from operator import itemgetter
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffpo.core.types import Condition
from diffpo.models.base import Asked, Width
from diffpo.models.flow import Flow
from diffpo.models.hunyuanvideo import HunyuanVideo


class HunyuanVideo15(Flow):
    """`HunyuanVideo15Pipeline`'s transformer."""

    pipelines = ("HunyuanVideo15Pipeline",)
    lora_targets = HunyuanVideo.lora_targets
    blocks = ("HunyuanVideo15TransformerBlock",)
    patch = 1
    latent_channels = Width("latent channels", {"vae": "latent_channels"}, itemgetter("out_channels"))
    widths = (
        Width("text width", {"text_encoder": "hidden_size"}, itemgetter("text_embed_dim")),
        Width("width of the quoted text", {"text_encoder_2": "d_model"}, itemgetter("text_embed_2_dim")),
    )
    most_frames = None
    usual_frames = 121  # the pipeline's default
    fps = 24.0
    sides = 16
    token_limits: ClassVar = {"tokenizer": 1000, "tokenizer_2": None}  # the second one reads what is in quotation marks

    def answer(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        assert cond.mask is not None, "HunyuanVideo 1.5's conditions carry a mask"
        picture = torch.cat([torch.zeros_like(z), torch.zeros_like(z[:, :1])], dim=1)  # and where there is one
        return self.network(
            hidden_states=torch.cat([z, picture], dim=1).to(self.dtype),
            timestep=self.told(t, z),
            encoder_hidden_states=cond.text.to(self.dtype),
            encoder_attention_mask=cond.mask.to(z.device),
            encoder_hidden_states_2=cond.extra["quoted"].to(self.dtype),
            encoder_attention_mask_2=cond.extra["quoted_mask"].to(z.device),
            image_embeds=torch.zeros(len(z), 1, self.config["image_embed_dim"], dtype=self.dtype, device=z.device),
            return_dict=False,
        )[0]

    def told(self, t: Tensor, z: Tensor) -> Tensor:
        """The time as the pipeline tells it: rounded to the dtype of the weights, which cannot read another one."""
        return super().told(t, z).to(self.dtype)

    @classmethod
    def unheard(cls, network: Mapping[str, Any]) -> tuple[str, ...]:
        last = f"transformer_blocks.{network['num_layers'] - 1}"
        return f"{last}.attn.to_add_out", f"{last}.ff_context", "image_embedder"

    @staticmethod
    def encode_prompt(pipeline: Any, prompt: str, network: Mapping[str, Any]) -> dict[str, Tensor]:
        """The language model's states of the prompt's own tokens, and ByT5's: none without quotation marks.

        What the pipeline pads them with is attended to by nothing, and takes no room in a cache. Where there would be
        no token at all, one stands that the mask hides.
        """
        text, mask, quoted, quoted_mask = pipeline.encode_prompt(prompt)
        own = text[0][mask[0].bool()]
        held = torch.ones(len(own), dtype=torch.bool)
        kept = max(1, int(quoted_mask[0].sum()))  # the padding stands behind
        return {"text": own, "mask": held, "quoted": quoted[0, :kept], "quoted_mask": quoted_mask[0, :kept].bool()}

    factors = staticmethod(HunyuanVideo.factors)

    @staticmethod
    def encode_media(pipeline: Any, frames: Tensor) -> tuple[Tensor, None]:
        with _one_by_one(pipeline.vae):
            return HunyuanVideo.encode_media(pipeline, frames)

    @classmethod
    def sampling(cls, asked: Asked) -> dict[str, Any]:
        """What the call is told; the guidance is the pipeline's `guider`: see `guided`."""
        return {name: value for name, value in super().sampling(asked).items() if name != "guidance_scale"}

    @classmethod
    @contextmanager
    def guided(cls, pipeline: Any, scale: float) -> Iterator[None]:
        """Give the pipeline's guider this scale, and then its own again."""
        guider = pipeline.guider
        own = guider.guidance_scale
        guider.guidance_scale = scale
        try:
            with _one_by_one(pipeline.vae):
                yield
        finally:
            guider.guidance_scale = own


@contextmanager
def _one_by_one(vae: Any) -> Iterator[None]:
    """Let the VAE see one clip at a time: the mask of its attention has no axis for heads, and fits no second clip."""
    before = vae.use_slicing
    vae.use_slicing = True
    try:
        yield
    finally:
        vae.use_slicing = before
