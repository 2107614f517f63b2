"""What the pipelines of diffusers make of given latents: the judge of what a family says that latents are."""

from __future__ import annotations

from functools import wraps

import torch
from torch import Tensor

from diffpo.generation.sampling import find_family, undisturbed
from diffpo.models.base import Asked


def shown(pipeline, latent: Tensor, frames: int, size: tuple[int, int]) -> Tensor:
    """What a pipeline shows where its sampler ends with these latents.

    Args:
        pipeline: One in memory, whose latents are decoded by a VAE.
        latent: `[n c f h w]`, normalised for the network.
        frames: Of the clip.
        size: Height and width in pixels.

    Returns:
        `[n 3 frames height width]` in [0, 1].
    """
    family, own = find_family(pipeline), pipeline.scheduler.step

    @wraps(own)  # pipelines look at its signature
    def step(*args, **kwargs):
        given, last = own(*args, **kwargs), family.to_sampler(latent)
        if last.ndim != given[0].ndim:  # the pipeline has packed what it was given
            last = last.flatten(2).transpose(1, 2)
        return (last,) if isinstance(given, tuple) else type(given)(prev_sample=last)

    asked = Asked(rows=len(latent), guidance=3.0, negative=None, frames=frames, fps=None, steps=2, size=size)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler.step = step
    try:
        with undisturbed(pipeline), family.guided(pipeline, 3.0):
            made = pipeline(prompt=["a bird"] * len(latent), output_type="np", **family.sampling(asked))
    finally:
        del pipeline.scheduler.step
    clips = torch.as_tensor(made.frames if "frames" in made else made.images)
    return clips.reshape(len(latent), frames, *size, 3).permute(0, 4, 1, 2, 3)
