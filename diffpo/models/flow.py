"""Rectified-flow transformers: what those families share. They differ in what the network is called with.

Times are the noise level sigma, shifted towards noise as the pipeline's scheduler says: by a constant, or the further,
the more tokens a picture or clip has (arXiv:2403.03206, section 5.3.2):

    mu(n) = base + (max - base) (n - base_len) / (max_len - base_len)       shift = exp(mu), or mu itself
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffpo.core.process import FlowProcess, NoiseProcess, Time
from diffpo.core.types import moved
from diffpo.errors import UserError
from diffpo.models.base import Denoiser


class Flow(Denoiser):
    """A transformer trained by rectified flow."""

    components = ("transformer",)
    patch = 2
    unit: ClassVar[float] = 1000.0
    """What the network is told at sigma = 1."""

    @classmethod
    def make_process(cls, scheduler: Mapping[str, Any], time: Time) -> NoiseProcess:
        """The straight line, shifted as the model's scheduler says.

        Raises:
            UserError: The scheduler is one for discrete models.
        """
        if "flow_shift" in scheduler and not scheduler.get("use_flow_sigmas"):
            raise UserError(
                f"the scheduler is a {scheduler.get('_class_name')} with use_flow_sigmas=false, but a "
                f"{cls.pipelines[0]} is a flow model: put use_flow_sigmas=true and "
                "prediction_type=flow_prediction into scheduler/scheduler_config.json"
            )
        if scheduler.get("use_dynamic_shifting"):
            return FlowProcess(shift=partial(_shift_by_size, cls, dict(scheduler)), time=time)
        return FlowProcess(shift=float(scheduler.get("flow_shift", scheduler.get("shift", 1.0))), time=time)

    @classmethod
    def tokens(cls, shape: Sequence[int]) -> int:
        """Tokens that the network makes of latents `[c f h w]`."""
        _, frames, height, width = shape
        return frames * (height // cls.patch) * (width // cls.patch)

    @classmethod
    def mu(cls, scheduler: Mapping[str, Any], tokens: int) -> float:
        """How far times are shifted for so many tokens; defaults are those of FlowMatchEulerDiscreteScheduler."""
        base, most = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
        start, end = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
        return base + (most - base) * (tokens - start) / (end - start)

    def told(self, t: Tensor, z: Tensor) -> Tensor:
        """The time `[b]` in the network's unit, in float32 at least: half precision would move it."""
        return moved(self.unit * t, z.device, torch.promote_types(self.dtype, torch.float32))

    def told_guidance(self, z: Tensor) -> Tensor | None:
        """The guidance `[b]` that a distilled network is told, in its unit; None for another one."""
        if not self.config.get("guidance_embeds"):
            return None
        return torch.full((len(z),), self.unit * self.guidance, device=z.device)


def channel_statistics(vae: Mapping[str, Any], like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of a VAE's latents, `[1 c 1 1 1]` each, from its configuration."""
    mean, std = (torch.tensor(vae[name]).reshape(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    return mean.to(like.device), std.to(like.device)


def _shift_by_size(family: type[Flow], scheduler: Mapping[str, Any], shape: Sequence[int]) -> float:
    """The shift for latents `[c f h w]`."""
    mu = family.mu(scheduler, family.tokens(shape))
    return mu if scheduler.get("time_shift_type") == "linear" else math.exp(mu)
