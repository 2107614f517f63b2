"""Clips that are denoised from a corrupted real one: guided pairs (DenseDPO, arXiv:2506.03517, section 4.1).

One noise level eta, two seeds. The two clips share layout and motion, the more so the smaller eta is, and differ in
detail. With x the latents of the real clip and eps noise of the seed,

    flow      z = (1 - eta) x + eta eps        denoised from sigma = eta: eta takes the place of the levels above it in
                                               the sampler's grid, and the lower ones stay as they are
    eps, v    z = alpha x + sigma eps          denoised from the first time of the sampler's grid with
                                               sigma / alpha <= eta / (1 - eta), the ratio of the flow's z

A sampler of a discrete model counts in the steps of its own grid, so that it begins on a point of it. At eta = 1
nothing of the real clip is left, and the clips are what the pipeline makes of prompt and seed.

eta is a noise level and not the `strength` of diffusers' pipelines from clip to clip, which is a share of the steps.
Where the times of a flow model are shifted by k, both begin at the same level if

    strength = eta / (k - (k - 1) eta)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffpo.core.process import NoiseProcess, Time
from diffpo.errors import UserError
from diffpo.generation.sampling import call_pipeline, find_family, plan_clips, undisturbed
from diffpo.generation.settings import Sampler
from diffpo.media.frames import Clip

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

NEAREST = 1e-3
"""A level of the grid that lies below eta by no more is left out: a step would be shorter than the unit of time."""


@dataclass(frozen=True)
class Denoised:
    """What became of a clip."""

    clips: list[Clip]
    """One per seed."""
    latents: Tensor
    """`[n c f h w]` float32 on the CPU: what the VAE decoded, normalised for the network."""


def denoise_clip(
    pipeline: DiffusionPipeline, frames: Tensor, prompt: str, eta: float, seeds: Sequence[int], sampler: Sampler
) -> Denoised:
    """Corrupt a clip to a noise level, once per seed, and denoise it with a pipeline's own scheduler and guidance.

    Args:
        pipeline: One of a family that diffpo trains.
        frames: `[3 f h w]` in [-1, 1]; as many and as large as the sampler makes.
        prompt: What the clip shows.
        eta: The noise level, in (0, 1].
        seeds: Of the noise.
        sampler: What the pipeline is told; its size is that of the frames.

    Raises:
        UserError: The pipeline's scheduler cannot begin there, or a clip comes out wrong; see `sample_clips`.
    """
    family = find_family(pipeline)
    assert family is not None, "Request.of knows the family"
    plan = plan_clips(family, pipeline.vae.config, pipeline.scheduler.config, sampler)
    rows = [(prompt, seed) for seed in seeds]
    spatial, temporal = family.factors(pipeline.vae.config)
    count, height, width = frames.shape[1:]
    pipeline.set_progress_bar_config(disable=True)
    with undisturbed(pipeline), _keeping(pipeline.scheduler) as held:
        if eta == 1:
            clips = call_pipeline(pipeline, rows, plan, sampler, {})
        else:
            x0, _ = family.encode_media(pipeline, frames[None].to(pipeline.vae.device, pipeline.vae.dtype))
            process = family.make_process(pipeline.scheduler.config, Time())
            noise = [torch.randn(x0.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
            noise = torch.stack(noise).to(x0)
            with _beginning(pipeline.scheduler, process, eta):
                z = _corrupt(pipeline.scheduler, process, x0, noise, eta, sampler.steps)
                if process.prediction != "flow":  # their pipelines take latents in the network's dtype
                    z = z.to(getattr(pipeline, family.components[0]).dtype)
                clips = call_pipeline(pipeline, rows, plan, sampler, {"latents": family.to_sampler(z)})
    sizes = (count - 1) // temporal + 1, height // spatial, width // spatial
    return Denoised(clips, family.from_sampler(held[0], sizes).float().cpu())


def _corrupt(scheduler: Any, process: NoiseProcess, x0: Tensor, noise: Tensor, eta: float, steps: int) -> Tensor:
    """Noise `[n c f h w]` and the latents `[1 c f h w]` at the level where a scheduler begins; see the module."""
    if process.prediction == "flow":
        return (1 - eta) * x0 + eta * noise
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps[:1].repeat(len(noise)).to(noise.device)
    # Pipelines of discrete models multiply what they are given by the deviation that their scheduler begins with.
    return scheduler.add_noise(x0.expand_as(noise), noise, times) / scheduler.init_noise_sigma


@contextmanager
def _keeping(scheduler: Any) -> Iterator[list[Tensor]]:
    """Keep what the last step of a scheduler gave."""
    step, held = scheduler.step, []

    @wraps(step)  # pipelines look at its signature
    def keep(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        held[:] = [result[0]]
        return result

    with _replaced(scheduler, "step", keep):
        yield held


@contextmanager
def _replaced(scheduler: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Put another method in the place of one of a scheduler's."""
    setattr(scheduler, name, method)
    try:
        yield
    finally:
        delattr(scheduler, name)


@contextmanager
def _beginning(scheduler: Any, process: NoiseProcess, eta: float) -> Iterator[None]:
    """Let a scheduler begin at a noise level, whoever sets its grid meanwhile."""
    if scheduler.order != 1:
        raise UserError(
            f"{type(scheduler).__name__} takes several looks at each step and cannot begin at a noise level: use a "
            "model whose scheduler is of first order, such as FlowMatchEulerDiscreteScheduler or DDIMScheduler."
        )
    whole = scheduler.set_timesteps
    cut: Callable[[Any], None] = partial(_cut_flow, eta=eta)
    if process.prediction != "flow":
        cut = partial(_cut_discrete, process=process, eta=eta)

    @wraps(whole)  # pipelines look at its signature
    def set_timesteps(*args: Any, **kwargs: Any) -> None:
        whole(*args, **kwargs)
        cut(scheduler)

    with _replaced(scheduler, "set_timesteps", set_timesteps):
        yield


def _cut_flow(scheduler: Any, eta: float) -> None:
    """Put eta in place of the noise levels above it."""
    levels, times = scheduler.sigmas, scheduler.timesteps
    below = levels[levels < eta - NEAREST]  # the last one, the clean end, has no time
    first = torch.tensor([eta * scheduler.config.num_train_timesteps], dtype=torch.float64)
    first = first if times.is_floating_point() else first.round()
    scheduler.sigmas = torch.cat([torch.tensor([eta]).to(levels), below])
    scheduler.timesteps = torch.cat([first.to(times), times[len(times) - len(below) + 1 :]])
    scheduler.num_inference_steps = len(scheduler.timesteps)


def _cut_discrete(scheduler: Any, process: NoiseProcess, eta: float) -> None:
    """Leave the times out at which there is more noise than at eta; how far a step goes stays as it was."""
    times = scheduler.timesteps
    alpha, sigma = process.alpha_sigma(times)
    allowed = (sigma * (1 - eta) <= alpha * eta).nonzero()
    if not len(allowed):
        raise UserError(f"{len(times)} steps have no time with as little noise as eta={eta:.3g}: give more steps.")
    first = int(allowed[0])
    scheduler.timesteps = times[first:]
    if len(vars(scheduler).get("sigmas", ())) == len(times) + 1:
        scheduler.sigmas = scheduler.sigmas[first:]
