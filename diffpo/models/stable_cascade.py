"""Stable Cascade's stage C (Wuerstchen, arXiv:2306.00637): a UNet over few, deeply compressed cells; epsilon.

It is the base of PPD's paper. A prompt becomes a picture in two steps: stage C makes the latents of the prompt, and
stage B, which is not trained, makes the picture of the latents. So the pipeline is diffusers' combined one, which holds
both. What encodes a picture lies beside it as a file of the authors, since no pipeline holds that (see `effnet`).

Times are the fraction t in (0, 1) of a cosine schedule. Training weighs all of them alike, as Diffusion-DPO does; the
authors' own training weighs them by the signal-to-noise ratio (P2), and what PPD's paper did is not known.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffpo.core.process import ContinuousProcess, NoiseProcess, Time
from diffpo.core.types import Condition, moved
from diffpo.errors import UserError
from diffpo.models import effnet
from diffpo.models.base import Asked, Denoiser, Width, images_only
from diffpo.models.user_adapter import TextAttention

SCHEDULER = "DDPMWuerstchenScheduler"
DECODER_STEPS = 12
"""Steps of stage B: the pipeline's own number."""


class StableCascade(Denoiser):
    """The prior of a `StableCascadeCombinedPipeline`; diffusers reads no LoRA for it: an adapter is PEFT's folder."""

    pipelines = ("StableCascadeCombinedPipeline",)
    hints = dict.fromkeys(
        ("StableCascadePriorPipeline", "StableCascadeDecoderPipeline"),
        "It is one half of the model: docs/models.md says how both become one folder; give that",
    )
    components = ("prior_prior",)
    scheduler = "prior_scheduler"
    unread = ("text_encoder", "tokenizer")  # stage B's; it is given what stage C's made
    vae_file = effnet.FILE
    vae_source = "stabilityai/stable-cascade"
    open_vae = staticmethod(effnet.load_effnet)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    blocks = ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock")
    sides = 128  # three cells of stage C, and 32 of stage B: other sides come out as others
    whole_parts = ("vae",)
    widths = (
        Width("text width", {"prior_text_encoder": "hidden_size"}, itemgetter("clip_text_in_channels")),
        Width("pooled width", {"prior_text_encoder": "projection_dim"}, itemgetter("clip_text_pooled_in_channels")),
    )
    text_attention: ClassVar = TextAttention(
        r".+\.attention", key_norm=None, through="{block}.kv_mapper.1", halves="first"
    )

    def __init__(self, network: Any, process: NoiseProcess, guidance: float = 1.0, rate: float | None = None):
        """Switch off the network's own dropout: policy and reference would not be asked the same."""
        super().__init__(network, process, guidance, rate)
        for name, module in network.named_modules():
            if isinstance(module, nn.Dropout) and ".lora_" not in name:
                module.p = 0.0

    def answer(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        assert cond.pooled is not None, "Stable Cascade's conditions carry a pooled text state"
        told = {
            "timestep_ratio": moved(t, z.device, self.dtype),
            "clip_text_pooled": cond.pooled.to(self.dtype)[:, None],
            "clip_text": cond.text.to(self.dtype),
            "clip_img": z.new_zeros(len(z), 1, self.config["clip_image_in_channels"], dtype=self.dtype),
        }
        return images_only(lambda x: self.network(sample=x, **told, return_dict=False)[0], z.to(self.dtype))

    @classmethod
    def unheard(cls, network: Mapping[str, Any]) -> tuple[str, ...]:
        """No picture is shown to it beside the prompt, as when it samples: these weights meet zeros."""
        return ("clip_img_mapper.weight",)

    @staticmethod
    def make_process(scheduler: Mapping[str, Any], time: Time) -> ContinuousProcess:
        """Ask the pipeline's scheduler itself how much signal a time has.

        Raises:
            UserError: It is another one, whose times are not the network's.
        """
        from diffusers import DDPMWuerstchenScheduler

        if scheduler.get("_class_name", SCHEDULER) != SCHEDULER:
            raise UserError(
                f"the prior_scheduler is a {scheduler['_class_name']}; Stable Cascade is trained with the {SCHEDULER} "
                "that it was published with: put that into prior_scheduler/scheduler_config.json"
            )
        made = DDPMWuerstchenScheduler.from_config(scheduler)
        return ContinuousProcess(prediction="eps", alpha=partial(_signal, made), time=time)

    @staticmethod
    def encode_prompt(pipeline: Any, prompt: str, network: Mapping[str, Any]) -> dict[str, Tensor]:
        """Last hidden states of all positions, and the pooled state."""
        return StableCascade.encode_prompts(pipeline, [prompt], network)[0]

    @classmethod
    def encode_prompts(
        cls, pipeline: Any, prompts: Sequence[str], network: Mapping[str, Any]
    ) -> list[dict[str, Tensor]]:
        prior = pipeline.prior_pipe
        texts, pooled, _, _ = prior.encode_prompt(pipeline.device, len(prompts), 1, False, prompt=list(prompts))
        return [{"text": text, "pooled": one} for text, one in zip(texts, pooled.squeeze(1), strict=True)]

    @staticmethod
    def factors(vae: Mapping[str, Any]) -> tuple[int, int]:
        """The encoder's; a picture that is made has a third more pixels a side: 768 to train on make 1024."""
        return 32, 1

    @staticmethod
    def encode_media(pipeline: Any, frames: Tensor) -> tuple[Tensor, None]:
        return images_only(pipeline.vae, frames).float(), None

    @classmethod
    def sampling(cls, asked: Asked) -> dict[str, Any]:
        """Steps and guidance are those of stage C; stage B has its own."""
        told = asked.usual
        stage_c = {"prior_guidance_scale": told.pop("guidance_scale"), "prior_num_inference_steps": asked.steps}
        return told | stage_c | {"num_inference_steps": DECODER_STEPS}


def _signal(scheduler: Any, t: Tensor) -> Tensor:
    """What remains of a one at times t `[...]` in float64, where the scheduler adds no noise to it: alpha."""
    flat = t.flatten()
    return scheduler.add_noise(torch.ones_like(flat), torch.zeros_like(flat), flat).reshape(t.shape)
