"""How images are sampled: one description for `generate`, `evaluate`, the demo, and the samples of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from diffpo.core.block import (
    Block,
    Count,
    FramesPerSecond,
    Guidance,
    NotNegative,
    Pixels,
    Place,
    Range,
    SamplingSteps,
    Seed,
)
from diffpo.disk.files import hash_of
from diffpo.errors import UserError
from diffpo.media.folder import LARGEST_SEED


@dataclass(frozen=True, kw_only=True)
class Sampler(Block):
    """What a pipeline in memory is told."""

    steps: SamplingSteps = 50
    """Sampling steps."""
    guidance: Guidance = 7.5
    """Classifier-free guidance scale."""
    batch: Count = 4
    """Images at a time, per process. Another batch size changes the last bits of an image, not its noise."""
    size: tuple[Pixels, Pixels] | None = None
    """Height and width in pixels; null is the model's own."""
    frames: Annotated[int, Range(least=1, most=10_000)] | None = None
    """Frames of a clip; null is the model's own number. A model of images makes one."""
    fps: FramesPerSecond | None = None
    """Frames per second of a clip; null is what the model was made for."""
    negative_prompt: str | None = None
    """What to guide away from."""


@dataclass(frozen=True, kw_only=True)
class Sampling(Sampler):
    """How images are made, the same for all models that are compared."""

    batch: Count | None = None
    """Images at a time, per process; fewer where a GPU's memory does not hold so many, which the settings of the media
    then say. null: 4 on a CPU, on a GPU as many as fit, from 32 large images on. Another batch size changes the last
    bits of an image, not its noise."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Of weights and computation. null: float32, on a GPU of NVIDIA half precision: float16 for Stable Diffusion's
    UNets, bfloat16 for others."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
    noise: Literal["per-prompt", "consecutive", "shared"] = "per-prompt"
    """`per-prompt`: each prompt has noise of its own, the same for all models, which depends on nothing but the prompt
    and the seed: right for statistics. `consecutive`: prompt i of k consecutive seeds gets seed + i k. `shared`: every
    prompt gets the seeds as they are."""


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(Sampling):
    """What is sampled from, and how."""

    model: Place
    """Folder of a diffusers pipeline, Hub id, or `shapes:base` (the embedded one)."""
    lora: Place | None = None
    """LoRA on top of `model`: a folder or file that diffusers' `load_lora_weights` reads, or a Hub id."""
    denoiser: Place | None = None
    """Fully tuned UNet or transformer in place of the model's own: a folder, or a Hub id."""
    tuned: Place | None = None
    """Run folder of `diffpo train`, or its `final/`: a LoRA or a denoiser, whichever it holds."""
    seeds: tuple[Seed, ...] = (0,)
    """Seeds of the images of each prompt."""
    users: Place | None = None
    """Folder of `diffpo data users` that knows the users of `blend`."""
    blend: dict[str, NotNegative] = field(default_factory=dict)
    """Whom the images are for, where `tuned` holds a user adapter: users and their shares. Empty: nobody."""
    strength: Annotated[float, Range(least=0, most=1000)] = 1.0
    """What the users' part is multiplied with; 0 is the base exactly."""

    def __post_init__(self) -> None:
        """Check the ranges, and that no seed stands there twice.

        Raises:
            UserError: A value is not possible.
        """
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise UserError(f"seeds must be different numbers from 0, got {list(self.seeds)}.")
        if bool(self.blend) != (self.users is not None):
            raise UserError(
                "whom images are for takes both: users, the folder that knows them, and blend, their shares."
            )

    def seeds_of(self, prompt: str, number: int) -> tuple[int, ...]:
        """What the noise of the images of a prompt, of which the place in its set is `number`, is drawn with.

        Raises:
            UserError: A seed is larger than can be kept.
        """
        largest, span = max(self.seeds), max(self.seeds) - min(self.seeds) + 1
        first = {"per-prompt": int(hash_of(prompt, 4), 16) >> 1, "consecutive": number * span, "shared": 0}[self.noise]
        if largest + first > LARGEST_SEED:
            raise UserError(f"the seed {largest + first} of {prompt!r} is too large: at most {LARGEST_SEED} is kept.")
        return tuple(seed + first for seed in self.seeds)
