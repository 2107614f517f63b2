"""Generation: prompts -> a media folder (images, manifest, settings).

The image of (prompt, seed) is what plain diffusers gives for

    pipe(prompt, num_inference_steps=steps, guidance_scale=guidance, generator=torch.Generator("cpu").manual_seed(seed))

Each image has a generator of its own, so its noise does not depend on what else is in the batch. The batches
themselves are a function of the prompts and seeds alone, so a run that was killed and started again ends with the
same files, byte for byte.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from diffpo.compat import pick_device
from diffpo.core.block import Block, Count, Guidance, Pixels, Place, SamplingSteps, Seed
from diffpo.disk.ahead import chunks
from diffpo.disk.files import write_file, write_json
from diffpo.disk.progress import progress, stderr_console
from diffpo.errors import UserError
from diffpo.generation.sampling import sample_images
from diffpo.media.folder import MANIFEST, SCORES, SETTINGS, Media, manifest_line, read_settings, write_manifest
from diffpo.media.prompts import PromptSet
from diffpo.models.pipelines import Model, find_model, open_pipeline

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from rich.console import Console

__all__ = ["GenerateOptions", "Generation", "generate", "pick_device", "sample_images"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
NO_SAFETY_CHECKER = "off (it replaces images by black ones, which would spoil the scores)"
_NAMES = frozenset({"model", "tuned", "prompts", "versions", "safety_checker"})
"""Settings that may change without changing an image: where something lies, or how it is called."""


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(Block):
    """What to sample with."""

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
    distinct_seeds: bool = False
    """Shift the seeds from prompt to prompt (prompt i of k consecutive seeds gets seed + i k), so that no noise is
    used twice: right for statistics. Otherwise every prompt gets `seeds`."""
    steps: SamplingSteps = 50
    """Sampling steps."""
    guidance: Guidance = 7.5
    """Classifier-free guidance scale."""
    batch: Count = 4
    """Images at a time. Another batch size changes the last bits of an image, not its noise."""
    size: tuple[Pixels, Pixels] | None = None
    """Height and width in pixels; None is the model's own."""
    negative_prompt: str | None = None
    """What to guide away from."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the weights and the computation."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""

    def __post_init__(self):
        """Check the ranges, and that no seed stands there twice."""
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise UserError(f"seeds must be different numbers from 0, got {list(self.seeds)}.")

    def seeds_of(self, prompt_id: int) -> tuple[int, ...]:
        """The seeds of one prompt."""
        span = max(self.seeds) - min(self.seeds) + 1
        return tuple(seed + prompt_id * span for seed in self.seeds) if self.distinct_seeds else self.seeds


@dataclass(frozen=True)
class Generation:
    """What a call of `generate` did."""

    folder: Path
    images: int
    reused: int
    """How many of them were there already."""
    seconds: float


def generate(
    options: GenerateOptions,
    prompts: PromptSet | Sequence[str],
    out: str | Path,
    *,
    label: str | None = None,
    fresh: bool = False,
    console: Console | None = None,
) -> Generation:
    """Make a media folder; what an earlier, interrupted call with the same settings made is kept.

    Args:
        options: What to sample with.
        prompts: What to sample.
        out: The folder.
        label: Name of the model in tables and grids; by default the last part of its path.
        fresh: Remove what an earlier call made in `out` first.
        console: Where to show progress; standard error by default.

    Raises:
        UserError: If there is no prompt, the model cannot be loaded, the size is not possible, `out` holds something
            else, or an image comes out as not-a-number.
    """
    console = console or stderr_console()
    prompts = prompts if isinstance(prompts, PromptSet) else PromptSet.of(prompts)
    if not prompts:
        raise UserError("there is no prompt to generate for.")
    out, start = Path(out), time.perf_counter()
    model = find_model(options.model, lora=options.lora, denoiser=options.denoiser, tuned=options.tuned)
    device = pick_device(options.device)
    label = label or _label(options)
    settings = describe(options, model, prompts, label, device)
    _prepare_folder(out, settings, fresh)
    jobs = _plan(options, prompts, label)
    batches = chunks(jobs, options.batch)
    whole = [all((out / job.file).is_file() for job in batch) for batch in batches]
    todo = [batch for batch, done in zip(batches, whole, strict=True) if not done]
    reused = len(jobs) - sum(map(len, todo))
    if todo:
        console.print(f"safety checker {NO_SAFETY_CHECKER}", style="dim", highlight=False)
        write_manifest(out, [job for batch, done in zip(batches, whole, strict=True) if done for job in batch])
        pipeline = open_pipeline(model, dtype=DTYPES[options.dtype], device=device)
        _run(pipeline, options, todo, out, console)
    write_manifest(out, jobs)
    return Generation(out, len(jobs), reused, time.perf_counter() - start)


def _run(
    pipeline: DiffusionPipeline, options: GenerateOptions, todo: list[list[Media]], out: Path, console: Console
) -> None:
    with (
        progress("Generating", sum(map(len, todo)), console=console) as advance,
        open(out / MANIFEST, "a", encoding="utf-8") as manifest,
    ):
        for batch in todo:
            images = sample_images(
                pipeline,
                [job.prompt for job in batch],
                [job.seed for job in batch],
                steps=options.steps,
                guidance=options.guidance,
                batch=options.batch,
                size=options.size,
                negative_prompt=options.negative_prompt,
            )
            for job, image in zip(batch, images, strict=True):
                buffer = io.BytesIO()
                image.save(buffer, format="PNG")
                write_file(out / job.file, buffer.getvalue())
                manifest.write(manifest_line(job))
            manifest.flush()
            advance(len(batch))


def _label(options: GenerateOptions) -> str:
    """The run's name, or the last part of a path or id."""
    path = Path(options.tuned or options.lora or options.denoiser or options.model)
    return path.parent.name if path.name == "final" and path.parent.name else path.name


def _plan(options: GenerateOptions, prompts: PromptSet, label: str) -> list[Media]:
    return [
        Media(file=f"{i:06d}-s{seed}.png", prompt=prompt, prompt_id=i, seed=seed, model=label)
        for i, prompt in enumerate(prompts.prompts)
        for seed in options.seeds_of(i)
    ]


def describe(options: GenerateOptions, model: Model, prompts: PromptSet, label: str, device: str) -> dict[str, Any]:
    """The settings file. Whatever an image depends on is in it."""
    from importlib.metadata import version

    tuned = model.lora or model.denoiser
    return {
        "label": label,
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
        "distinct_seeds": options.distinct_seeds,
        "steps": options.steps,
        "guidance": options.guidance,
        "size": options.size and list(options.size),
        "negative_prompt": options.negative_prompt,
        "batch": options.batch,
        "dtype": options.dtype,
        "device": device.partition(":")[0],
        "safety_checker": NO_SAFETY_CHECKER,
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")}
        | ({} if tuned is None else {"peft": version("peft")}),
    }


def _prepare_folder(out: Path, settings: dict[str, Any], fresh: bool) -> None:
    """Make the folder, or make sure that what is in it is the same work, begun earlier."""
    earlier = read_settings(out)
    if earlier and (fresh or not _images(out)):  # without an image nothing is lost: a mistake may just be mended
        _clear(out)
    elif earlier:
        changed = [key for key in settings.keys() - _NAMES if earlier.get(key) != settings[key]]
        if changed:
            listed = "; ".join(f"{key} was {earlier.get(key)}, is now {settings[key]}" for key in sorted(changed))
            raise UserError(
                f"{out} was made with other settings: {listed}. Use `--fresh` to replace it, or another folder."
            )
        _remove(_unfinished(out))
        return
    elif out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} holds other files and no {SETTINGS} of `diffpo generate`. Use another folder.")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / SETTINGS, settings)


def _images(out: Path) -> list[Path]:
    return [path for path in out.iterdir() if re.fullmatch(r"\d{6,}-s\d+\.png", path.name)]


def _unfinished(out: Path) -> list[Path]:
    """What a kill left of a file that was being written."""
    return [path for path in out.iterdir() if path.name.startswith(".tmp-")]


def _remove(files: list[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _clear(out: Path) -> None:
    """Remove what `generate` and `score` write, nothing else; the settings last, so that a kill leaves them behind."""
    _remove([*_images(out), *_unfinished(out), out / MANIFEST, out / SCORES, out / SETTINGS])
