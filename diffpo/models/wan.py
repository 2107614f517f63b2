"""Wan 2.1 (arXiv:2503.20314) and 2.2: a video transformer trained by rectified flow; its time is 1000 sigma.

The text is UMT5's states, and zeros up to 512 tokens, to which the network attends. The VAE is causal: its first latent
frame is the first frame, each further one is four frames.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from diffpo.core.process import NoiseProcess
from diffpo.core.types import Condition
from diffpo.models.base import LORA_FILE, Width
from diffpo.models.flow import Flow, channel_statistics
from diffpo.models.user_adapter import TextAttention


class Wan(Flow):
    """`WanPipeline`'s transformer."""

    pipelines = ("WanPipeline",)
    told_apart_by: ClassVar[tuple[bool, bool]] = (False, False)
    """Whether the pipeline has two networks, and whether it tells a time for each token."""
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    blocks = ("WanTransformerBlock",)
    latent_channels = Width("latent channels", {"vae": "z_dim"}, itemgetter("in_channels"))
    widths = (Width("text width", {"text_encoder": "d_model"}, itemgetter("text_dim")),)
    text_attention = TextAttention(r"blocks\.\d+\.attn2", halves="apart")
    most_frames = None
    usual_frames = 81  # the pipeline's default
    fps = 16.0  # arXiv:2503.20314, section 4.2
    sides = 16
    whole_parts = ("vae",)  # as the model's authors sample
    token_limits: ClassVar = {"tokenizer": 512}  # the pipeline's max_sequence_length

    @classmethod
    def reads(cls, index: Mapping[str, Any]) -> bool:
        experts, small = any(index.get("transformer_2") or ()), bool(index.get("expand_timesteps"))
        return super().reads(index) and (experts, small) == cls.told_apart_by

    def answer(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
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
        """The posterior's mode."""
        return Wan._normalised(pipeline, pipeline.vae.encode(frames).latent_dist.mode())

    @staticmethod
    def _normalised(pipeline: Any, mode: Tensor) -> tuple[Tensor, None]:
        mode = mode.float()
        mean, std = channel_statistics(pipeline.vae.config, mode)
        return (mode - mean) / std, None

    @classmethod
    def pieces(cls, count: int) -> list[range]:
        """The first frame, and then four at a time, as the causal VAE reads them itself."""
        return [range(1), *(range(start, start + 4) for start in range(1, count, 4))]

    @classmethod
    def encode_pieces(cls, pipeline: Any, pieces: Iterator[Tensor]) -> tuple[Tensor, Tensor | None]:
        """What `vae.encode` does of the whole clip, which need not be there at once: memory grows with a piece.

        Between pieces the VAE keeps the last frames of each of its layers.
        """
        vae = pipeline.vae
        if vae.config.patch_size is not None or vae.use_tiling:
            return super().encode_pieces(pipeline, pieces)
        vae.clear_cache()
        encoded = [vae.encoder(piece, feat_cache=vae._enc_feat_map, feat_idx=[0]) for piece in pieces]
        moments = vae.quant_conv(torch.cat(encoded, dim=2))
        vae.clear_cache()
        return cls._normalised(pipeline, moments.chunk(2, dim=1)[0])


class Wan22Small(Wan):
    """Wan 2.2's 5B, with a VAE that makes 16 x 16 pixels a latent cell.

    The pipeline tells its network a time for each token. Where a clip is made of a text alone they are all one, and the
    network makes the same of that one time for the whole clip, which it is told here.
    """

    told_apart_by = (False, True)
    usual_frames = 121
    fps = 24.0
    sides = 32


class Wan22High(Wan):
    """The one of Wan 2.2's two networks of 14 thousand million weights that samples while there is much noise."""

    told_apart_by = (True, False)

    @classmethod
    def within(cls, process: NoiseProcess, index: Mapping[str, Any]) -> NoiseProcess:
        """Times from the boundary on: drawn before they are shifted, from the boundary's place there."""
        return _between(process, _before_shift(process, index["boundary_ratio"]), 1.0)


class Wan22Low(Wan22High):
    """The one that goes on when little noise is left; diffusers reads its adapter beside the other's."""

    components = ("transformer_2",)

    @classmethod
    def within(cls, process: NoiseProcess, index: Mapping[str, Any]) -> NoiseProcess:
        return _between(process, 0.0, _before_shift(process, index["boundary_ratio"]))

    @staticmethod
    def lora_file(folder: Path) -> Path:
        return folder / "transformer_2" / LORA_FILE

    @staticmethod
    def save_lora(pipeline: Any, component: str, folder: Path, layers: dict[str, Tensor], config: dict) -> None:
        """Named as the first network's: `load_lora_weights(..., load_into_transformer_2=True)` says which one it is."""
        Wan.save_lora(pipeline, "transformer", folder / component, layers, config)

    @staticmethod
    def load_lora(network: Any, component: str, path: Path, adapter: str) -> None:
        Wan.load_lora(network, "transformer", path, adapter)


Wan22High.experts = Wan22Low.experts = {"high": Wan22High, "low": Wan22Low}


def _before_shift(process: NoiseProcess, sigma: float) -> float:
    """The time that is shifted to a noise level."""
    shift = process.time.shift or process.shift
    return sigma / (shift - (shift - 1) * sigma)


def _between(process: NoiseProcess, low: float, high: float) -> NoiseProcess:
    """Draw times in a part of the range; what the config says of low and high is of that part."""
    time, span = process.time, high - low
    return replace(process, time=replace(time, low=low + span * time.low, high=low + span * time.high))
