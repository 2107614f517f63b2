"""Stable Diffusion 3 and 3.5: a diffusion transformer trained by rectified flow; the network's time is 1000 sigma."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from diffpo.core.process import FlowProcess, NoiseProcess, Time
from diffpo.core.types import Condition
from diffpo.models.base import Denoiser, images_only


class SD3(Denoiser):
    """`StableDiffusion3Pipeline`'s transformer."""

    pipelines = ("StableDiffusion3Pipeline",)
    component = "transformer"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    blocks = ("JointTransformerBlock",)
    multiple = 2
    token_limits: ClassVar = {"tokenizer_3": 256}  # the pipeline's max_sequence_length; T5 itself knows no limit

    def predict(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """See `Denoiser.predict`."""
        assert cond.pooled is not None, "SD3 conditions carry a pooled text state"
        text, pooled = cond.text.to(self.dtype), cond.pooled.to(self.dtype)
        time = (1000 * t).to(z.device, torch.promote_types(self.dtype, torch.float32))
        return images_only(lambda x: self.network(x, text, pooled, time, return_dict=False)[0], z.to(self.dtype))

    @staticmethod
    def make_process(scheduler: dict[str, Any], time: Time) -> NoiseProcess:
        """The straight line, shifted as the model's scheduler says."""
        return FlowProcess(shift=float(scheduler.get("shift", 1.0)), time=time)

    @staticmethod
    def encode_prompt(pipeline: Any, prompt: str) -> dict[str, Tensor]:
        """States of both CLIP encoders, then T5's (the network attends to the padding too), and the pooled state."""
        text, _, pooled, _ = pipeline.encode_prompt(
            prompt, prompt, prompt, device=pipeline.device, do_classifier_free_guidance=False
        )
        return {"text": text[0], "pooled": pooled[0]}
