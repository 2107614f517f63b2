"""CogVideoX (arXiv:2408.06072): a video transformer, v-prediction at integer times, on latents with the frames first.

Its schedule ends without any signal, and is shifted towards noise by a factor on the signal-to-noise ratio; the
scheduler's own table says both. 2b has sine positions, 5b and 1.5 rotate, and 1.5 takes latent frames two by two.
"""

from collections.abc import Mapping
from dataclasses import replace
from operator import itemgetter
from typing import Any, ClassVar

from torch import Tensor

from diffpo.core.process import NoiseProcess, Time
from diffpo.core.types import Condition
from diffpo.errors import UserError
from diffpo.media.footage import FrameRule
from diffpo.models.base import Denoiser, Width
from diffpo.models.discrete import discrete_process


class CogVideoX(Denoiser):
    """`CogVideoXPipeline`'s transformer."""

    pipelines = ("CogVideoXPipeline",)
    components = ("transformer",)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    blocks = ("CogVideoXBlock",)
    patch = 2
    widths = (Width("text width", {"text_encoder": "d_model"}, itemgetter("text_embed_dim")),)
    most_frames = None
    usual_frames = 49  # the pipeline's default for 2b and 5b
    fps = 8.0  # arXiv:2408.06072, section 4
    token_limits: ClassVar = {"tokenizer": 226}  # the pipeline's max_sequence_length; T5 itself knows no limit

    def answer(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        z = z.to(self.dtype).transpose(1, 2)
        answer = self.network(
            hidden_states=z,
            encoder_hidden_states=cond.text.to(self.dtype),
            timestep=t.to(z.device),
            image_rotary_emb=self.rotations(z),
            return_dict=False,
        )[0]
        return answer.transpose(1, 2)

    def rotations(self, z: Tensor) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines of the positions in z `[b f c h w]`, as the pipeline makes them; None: a model without."""
        from diffusers.models.embeddings import get_3d_rotary_pos_embed
        from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

        config = self.config
        if not config["use_rotary_positional_embeddings"]:
            return None
        (frames, height, width), patch = (z.shape[1], *z.shape[3:]), config["patch_size"]
        cells = (height // patch, width // patch)
        usual_width, usual_height = config["sample_width"] // patch, config["sample_height"] // patch
        if config.get("patch_size_t") is None:
            crop = get_resize_crop_region_for_grid(cells, usual_width, usual_height)
            where: dict[str, Any] = {"crops_coords": crop, "temporal_size": frames}
        else:
            where = {
                "crops_coords": None,
                "temporal_size": frames // config["patch_size_t"],
                "grid_type": "slice",
                "max_size": (usual_height, usual_width),
            }
        return get_3d_rotary_pos_embed(config["attention_head_dim"], grid_size=cells, device=z.device, **where)

    @staticmethod
    def make_process(scheduler: Mapping[str, Any], time: Time) -> NoiseProcess:
        """The scheduler's own table."""
        from diffusers import CogVideoXDDIMScheduler

        return discrete_process(scheduler, time, CogVideoXDDIMScheduler)

    @staticmethod
    def encode_prompt(pipeline: Any, prompt: str, network: Mapping[str, Any]) -> dict[str, Tensor]:
        """T5's states, all 226 positions: the network attends to the padding too."""
        text, _ = pipeline.encode_prompt(
            prompt, do_classifier_free_guidance=False, max_sequence_length=CogVideoX.token_limits["tokenizer"]
        )
        return {"text": text[0]}

    @staticmethod
    def factors(vae: Mapping[str, Any]) -> tuple[int, int]:
        return 2 ** (len(vae["block_out_channels"]) - 1), int(vae.get("temporal_compression_ratio", 4))

    @classmethod
    def frame_rule(cls, vae: Mapping[str, Any], network: Mapping[str, Any]) -> FrameRule:
        rule, temporal = super().frame_rule(vae, network), cls.factors(vae)[1]
        return replace(rule, step=2 * temporal, first=temporal + 1) if network.get("patch_size_t") else rule

    @classmethod
    def check_frames(cls, count: int, vae: Mapping[str, Any], network: Mapping[str, Any] | None = None) -> None:
        super().check_frames(count, vae, network)
        temporal = cls.factors(vae)[1]
        twice = 2 * temporal
        if network is None and (count - 1) % twice:
            below = count - (count - 1) % twice
            raise UserError(
                f"CogVideoX makes clips of k * {twice} + 1 frames, since its VAE decodes latent frames two by two; "
                f"{count} were asked for. The nearest lengths are {below} and {below + twice}"
            )
        if network and network.get("patch_size_t") and (count - 1) % twice != temporal:
            raise UserError(
                f"CogVideoX 1.5 takes latent frames two by two: it is trained on clips of k * {twice} + "
                f"{temporal + 1} frames; it was given {count} frames. The next shorter length is {count - temporal}"
            )

    @staticmethod
    def encode_media(pipeline: Any, frames: Tensor) -> tuple[Tensor, None]:
        """The posterior's mode; the VAE reads eight frames at a time."""
        return pipeline.vae.encode(frames).latent_dist.mode().float() * pipeline.vae.config.scaling_factor, None

    @classmethod
    def to_sampler(cls, latent: Tensor) -> Tensor:
        return latent.transpose(1, 2)

    @classmethod
    def from_sampler(cls, held: Tensor, sizes: tuple[int, int, int]) -> Tensor:
        return held.transpose(1, 2)
