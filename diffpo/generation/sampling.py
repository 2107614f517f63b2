"""Sampling with a pipeline in memory, exactly as a user of plain diffusers would, and without a trace left behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import lcm
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from diffpo.disk.ahead import groups
from diffpo.errors import UserError
from diffpo.generation.settings import Sampler
from diffpo.media.frames import Clip

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def sample_clips(
    pipeline: DiffusionPipeline, prompts: Sequence[str], seeds: Sequence[int], sampler: Sampler
) -> list[Clip]:
    """Sample with a pipeline in memory: image i is that of `prompts[i]` and `seeds[i]`.

    Networks are put into eval mode and back; the global random state stays as it was.

    Args:
        pipeline: Any pipeline of diffusers from text to images, or to clips.
        prompts: One per image.
        seeds: One per image.
        sampler: What the pipeline is told.

    Raises:
        UserError: If the size is not possible, or an image comes out as not-a-number.
    """
    assert len(prompts) == len(seeds), (len(prompts), len(seeds))
    _check_size(pipeline, sampler.size)
    pipeline.set_progress_bar_config(disable=True)
    clips: list[Clip] = []
    with _undisturbed(pipeline):
        for rows in groups(zip(prompts, seeds, strict=True), sampler.batch):
            arguments: dict[str, Any] = {"prompt": [prompt for prompt, _ in rows]}
            if sampler.negative_prompt is not None:
                arguments["negative_prompt"] = [sampler.negative_prompt] * len(rows)
            if sampler.size is not None:
                arguments["height"], arguments["width"] = sampler.size
            generators = [torch.Generator("cpu").manual_seed(seed) for _, seed in rows]
            result = pipeline(
                **arguments,
                num_inference_steps=sampler.steps,
                guidance_scale=sampler.guidance,
                generator=generators,
                output_type="np",
            )
            made = result.frames if "frames" in result else result.images[:, None]  # an image is a clip of one frame
            _check_frames(made, sampler.size)
            clips += [Clip(tuple(map(Image.fromarray, frames))) for frames in (made * 255).round().astype(np.uint8)]
    return clips


def _check_size(pipeline: DiffusionPipeline, size: tuple[int, int] | None) -> None:
    if size is None:
        return
    transformer = pipeline.components.get("transformer")
    patch = transformer.config.get("patch_size", 1) if transformer is not None else 1
    multiple = lcm(8, pipeline.vae_scale_factor * (patch if isinstance(patch, int) else 1))  # 8: diffusers' own check
    if any(edge <= 0 or edge % multiple for edge in size):
        nearest = [max(1, round(edge / multiple)) * multiple for edge in size]
        raise UserError(
            f"size {size[0]}x{size[1]}: height and width must be multiples of {multiple} for this model, "
            f"for example {nearest[0]}x{nearest[1]}."
        )


def _check_frames(made: NDArray[np.float32], size: tuple[int, int] | None) -> None:
    """Check `[n f h w 3]`: pipelines turn not-a-number into black, and some round a size that they cannot make."""
    if np.isnan(made).any():
        raise UserError(
            "the pipeline made an image of not-a-numbers. In float16 it is the VAE: use dtype=bfloat16 or float32, or "
            "for SDXL a base with the VAE madebyollin/sdxl-vae-fp16-fix."
        )
    if size is not None and made.shape[2:4] != tuple(size):
        height, width = made.shape[2:4]
        raise UserError(
            f"the model makes {height}x{width} where {size[0]}x{size[1]} was asked: give a size that it can make."
        )


@contextmanager
def _undisturbed(pipeline: DiffusionPipeline) -> Iterator[None]:
    """Sample without gradients and dropout, and leave modes and random state as they were."""
    networks = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    modes = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    try:
        devices = [pipeline.device] if pipeline.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
