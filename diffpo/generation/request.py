"""What is asked of one model: its files are found, how many images it makes at a time is chosen, nothing is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from diffpo.compat import pick_device
from diffpo.core.types import DTYPES
from diffpo.generation.sampling import Listeners, Plan, plan_clips, sample_clips
from diffpo.generation.settings import GenerateOptions
from diffpo.generation.users import Audience, find_audience
from diffpo.generation.work import Draw, Work
from diffpo.media.folder import Media
from diffpo.media.frames import Clip
from diffpo.media.prompts import PromptSet
from diffpo.models import Denoiser
from diffpo.models.finding import Model, find_model
from diffpo.models.fitting import Fitting
from diffpo.models.pipelines import decode_one_by_one, open_pipeline

NO_SAFETY_CHECKER = "off (it replaces images by black ones, which would spoil the scores)"
CPU_BATCH, MOST, GPU_PIXELS = 4, 64, 32 * 1024**2
"""Images at a time unless told: on a CPU, the most that a GPU is given, and the pixels that it is given."""
USUAL_SIZE = (1024, 1024)
"""Taken for the size of images where none is asked for: the pipeline's own is known when it is loaded."""
HOW = ("noise", "steps", "guidance", "negative_prompt", "batch", "dtype")
"""Options that are settings as they are."""


@dataclass(frozen=True)
class Request:
    """What is asked of one model: its files are found, nothing is loaded."""

    options: GenerateOptions
    model: Model
    plan: Plan
    device: str
    label: str
    fitting: Fitting
    """How many images at a time."""
    audience: Audience | None = None
    """Whom the images are for; None: nobody."""

    @staticmethod
    def of(options: GenerateOptions, label: str | None = None) -> Request:
        """Find a model; without a label it is called like the run, or like the last part of its path or id.

        Raises:
            UserError: The model or the device is not there, or the model makes nothing of this size or length.
        """
        model = find_model(options.model, lora=options.lora, denoiser=options.denoiser, tuned=options.tuned)
        plan = plan_clips(model.family, model.vae, model.schedule, options)
        path = Path(options.tuned or options.lora or options.denoiser or options.model)
        name = path.parent.name if path.name == "final" and path.parent.name else path.name
        device = pick_device(options.device)
        options = settle(options, model, plan, device)
        audience = None if options.users is None else find_audience(options.users, options.blend, model)
        return Request(options, model, plan, device, label or name, Fitting(options.batch or 1), audience)

    def open(self) -> Draw:
        """Load the pipeline."""
        pipeline = open_pipeline(self.model, dtype=DTYPES[self.options.dtype], device=self.device)
        if self.device.startswith("cuda"):
            decode_one_by_one(pipeline)
        options, audience = self.options, self.audience

        def draw(asked: Sequence[Media], told: Listeners | None = None) -> list[Clip]:
            prompts, seeds = [item.prompt for item in asked], [item.seed or 0 for item in asked]
            return sample_clips(pipeline, prompts, seeds, options, self.fitting, told)

        def draw_told(asked: Sequence[Media]) -> list[Clip]:
            clips: dict[int, Clip] = {}
            for some, states, strength in audience.parts(asked) if audience is not None else ():
                told = Listeners(states, options.strength * strength)
                clips |= dict(zip(some, draw([asked[i] for i in some], told), strict=True))
            return [clips[i] for i in range(len(asked))]

        return draw if audience is None else draw_told

    def describe(self, prompts: PromptSet) -> dict[str, Any]:
        """The settings file. Whatever an image depends on is in it."""
        options, model = self.options, self.model
        tuned = model.lora or model.denoiser
        return {
            "label": self.label,
            "model": options.model,
            "tuned": options.tuned or options.lora or options.denoiser,
            "weights": model.base.identity,
            "lora_weights": model.lora and model.lora.identity,
            "denoiser_weights": model.denoiser and model.denoiser.identity,
            "pipeline": model.index.get("_class_name"),
            "scheduler": model.scheduler,
            "prompts": prompts.name,
            "prompts_hash": prompts.hash,
            "n_prompts": len(prompts),
            "seeds": list(options.seeds),
            "size": options.size and list(options.size),
            **({} if self.plan.frames == 1 else asdict(self.plan)),
            **({} if model.user_adapter is None else {"user_adapter_weights": model.user_adapter.identity}),
            **({} if self.audience is None else self.audience.described | {"strength": options.strength}),
            **{name: getattr(options, name) for name in HOW},
            "device": self.device.partition(":")[0],
            "safety_checker": NO_SAFETY_CHECKER,
            "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")}
            | ({} if tuned is None else {"peft": version("peft")}),
        }

    def media(self, prompts: PromptSet, name: Callable[[int, str, int], str]) -> list[Media]:
        """All that is asked for, prompt after prompt.

        `name` calls a file, but for its ending, by its prompt's place, the prompt and the seed.
        """
        usual = {"model": self.label, **asdict(self.plan)}
        return [
            Media(
                file=name(number, prompt, seed) + self.plan.suffix, prompt=prompt, prompt_id=number, seed=seed, **usual
            )
            for number, prompt in enumerate(prompts.prompts)
            for seed in self.options.seeds_of(prompt, number)
        ]

    def work(self, folder: Path, prompts: PromptSet, media: list[Media]) -> Work:
        """See what a media folder is to hold, and what of it is missing."""
        return Work(
            folder=folder,
            media=media,
            batch=self.options.batch or 1,
            sample=self.open,
            prompts=prompts,
            settings=self.describe(prompts),
            fitting=self.fitting,
        )


def settle(options: GenerateOptions, model: Model, plan: Plan, device: str) -> GenerateOptions:
    """Choose the dtype and the number of images at a time, where they are left to the device."""
    gpu, family = device.startswith("cuda"), model.family or Denoiser
    dtype, batch = options.dtype, options.batch
    if dtype is None:
        half = family.half if gpu and torch.cuda.is_bf16_supported() else "float16"
        dtype = half if gpu else "float32"
    if batch is None:
        height, width = options.size or USUAL_SIZE
        batch = min(MOST, max(1, GPU_PIXELS // (height * width * plan.frames))) if gpu else CPU_BATCH
    return replace(options, dtype=dtype, batch=batch)
