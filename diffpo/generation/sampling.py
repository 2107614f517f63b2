"""Sampling with a pipeline in memory, exactly as a user of plain diffusers would, and without a trace left behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import lcm
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffpo.errors import UserError
from diffpo.generation.settings import Sampler
from diffpo.media.frames import Clip
from diffpo.models import Denoiser, family_of
from diffpo.models.base import Asked
from diffpo.models.fitting import Fitting
from diffpo.models.user_adapter import user_adapter

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def sample_clips(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampler: Sampler,
    fitting: Fitting | None = None,
    listeners: Listeners | None = None,
) -> list[Clip]:
    """Sample with a pipeline in memory: clip i is that of `prompts[i]` and `seeds[i]`; an image is a clip of one frame.

    Networks are put into eval mode and back; the global random state stays as it was.

    Args:
        pipeline: Any pipeline of diffusers from text to images, or to clips.
        prompts: One per clip.
        seeds: One per clip.
        sampler: What the pipeline is told.
        fitting: How many at a time; by default as many as the sampler says, as long as they fit into memory.
        listeners: Whom each clip is for, of a pipeline with a user adapter; None: nobody.

    Raises:
        UserError: If the size or the length is not possible, or a clip does not come out, or as not-a-number, or as
            another size or length.
    """
    assert len(prompts) == len(seeds), (len(prompts), len(seeds))
    family = find_family(pipeline)
    vae = {} if family is None or family.vae_file is not None else pipeline.vae.config
    plan = plan_clips(family, vae, pipeline.scheduler.config, sampler)
    pipeline.set_progress_bar_config(disable=True)
    numbers, fitting = range(len(prompts)), fitting or Fitting(sampler.batch)

    def call(some: Sequence[int]) -> list[Clip]:
        rows = [(prompts[i], seeds[i]) for i in some]
        with nullcontext() if listeners is None else listeners.telling(pipeline, some):
            return call_pipeline(pipeline, rows, plan, sampler, {})

    with undisturbed(pipeline):
        return fitting.run(call, numbers)


@dataclass(frozen=True)
class Listeners:
    """Whom clips are for."""

    states: Tensor
    """`[n s d]` of each clip's user; zeros: nobody's."""
    strength: float = 1.0
    """What their part is multiplied with; 0 is the base exactly."""

    def telling(self, pipeline: DiffusionPipeline, rows: Sequence[int]) -> AbstractContextManager[None]:
        """Tell a pipeline whom some of the clips are for, while it makes them."""
        family = find_family(pipeline)
        adapter = None if family is None else user_adapter(getattr(pipeline, family.components[0]))
        assert adapter is not None, "the request has seen to it"
        return adapter.speaking(self.states[list(rows)], self.strength)


def call_pipeline(
    pipeline: DiffusionPipeline,
    rows: Sequence[tuple[str, int]],
    plan: Plan,
    sampler: Sampler,
    told: Mapping[str, Any],
) -> list[Clip]:
    """Call a pipeline once, for a prompt and a seed per clip; `told` is what it is told besides.

    Raises:
        UserError: A clip comes out as not-a-number, or as another size or length; or no size was asked for, and the
            network cannot make the pipeline's own.
    """
    asked = Asked(
        rows=len(rows),
        guidance=sampler.guidance,
        negative=sampler.negative_prompt,
        frames=plan.frames,
        fps=plan.fps,
        steps=sampler.steps,
        size=sampler.size,
    )
    family = find_family(pipeline) or Denoiser
    with _own_size(pipeline, sampler), family.guided(pipeline, sampler.guidance):
        result = pipeline(
            prompt=[prompt for prompt, _ in rows],
            generator=[torch.Generator("cpu").manual_seed(seed) for _, seed in rows],
            output_type="np",
            **family.sampling(asked),
            **told,
        )
    made = np.asarray(result.frames) if "frames" in result else np.asarray(result.images)[:, None]
    if len(made) != len(rows):
        raise UserError(
            f"a {type(pipeline).__name__} gave {len(made)} images or clips where {len(rows)} were asked for. Ask for "
            "one at a time (batch=1) to see for which prompt it gives none."
        )
    _check_made(made, plan.frames, sampler.size)
    return [Clip(tuple(map(Image.fromarray, frames)), plan.fps) for frames in (made * 255).round().astype(np.uint8)]


@contextmanager
def _own_size(pipeline: DiffusionPipeline, sampler: Sampler) -> Iterator[None]:
    """Say what to do where no size is asked for, and the pipeline's own is not one for this network.

    Pipelines of clips have a fixed size and length of their own, whatever network they hold.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if sampler.size is not None:
            raise
        raise UserError(
            f"a {type(pipeline).__name__} cannot make clips of its own size with this model ({error}). Give what the "
            "model was trained on: --size HEIGHTxWIDTH, for clips --frames and --fps (in a config: size, frames, fps)"
        ) from error


def find_family(pipeline: DiffusionPipeline) -> type[Denoiser] | None:
    """The family of a pipeline in memory; None: one that diffpo does not train."""
    return family_of({**pipeline.config, "_class_name": type(pipeline).__name__})


@dataclass(frozen=True)
class Plan:
    """How long the clips of a model are."""

    frames: int
    fps: float | None
    """None: images."""

    @property
    def suffix(self) -> str:
        """Ending of their files."""
        return ".png" if self.frames == 1 else ".mp4"


def plan_clips(
    family: type[Denoiser] | None, vae: Mapping[str, Any], schedule: Mapping[str, Any], sampler: Sampler
) -> Plan:
    """See what a model would make, before anything is made.

    Args:
        family: Of the model; None: one that diffpo does not train, which makes images.
        vae: Its VAE's configuration, where there is a family.
        schedule: That of the pipeline's scheduler.
        sampler: What is asked for.

    Raises:
        UserError: The model makes nothing of this size or length, or in one step.
    """
    if sampler.steps == 1 and schedule.get("shift_terminal"):
        raise UserError(
            f"steps is 1, but this model's scheduler stretches its noise levels so that the last step begins at "
            f"{schedule['shift_terminal']:g}, while a single step begins at 1: give steps=2 or more."
        )
    multiple = 8 if family is None else lcm(family.sides, family.multiple(vae))
    if sampler.size is not None and any(edge % multiple for edge in sampler.size):
        height, width = sampler.size
        nearest = [max(1, round(edge / multiple)) * multiple for edge in sampler.size]
        raise UserError(
            f"size {height}x{width}: height and width must be multiples of {multiple} for this model, "
            f"for example {nearest[0]}x{nearest[1]}."
        )
    frames = sampler.frames or (1 if family is None else family.usual_frames)
    if frames == 1:
        return Plan(1, None)
    if family is None:
        raise UserError(f"frames is {frames}, but diffpo makes no clips with this model: leave frames out.")
    family.check_frames(frames, vae)
    return Plan(frames, sampler.fps or family.fps)


def _check_made(made: NDArray[np.float32], frames: int, size: tuple[int, int] | None) -> None:
    """Check `[n f h w 3]`: pipelines turn not-a-number into black, and some round what they cannot make."""
    if np.isnan(made).any():
        raise UserError(
            "the pipeline made an image of not-a-numbers. In float16 it is the VAE: use dtype=bfloat16 or float32, or "
            "for SDXL a base with the VAE madebyollin/sdxl-vae-fp16-fix."
        )
    length, height, width = made.shape[1:4]
    if length != frames:
        raise UserError(f"the model makes clips of {length} frames where {frames} was asked: give frames={length}.")
    if size is not None and (height, width) != tuple(size):
        raise UserError(
            f"the model makes {height}x{width} where {size[0]}x{size[1]} was asked: give a size that it can make."
        )


@contextmanager
def undisturbed(pipeline: DiffusionPipeline) -> Iterator[None]:
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
