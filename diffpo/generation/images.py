"""The images of an evaluation, kept by (model, prompt, seed, sampler), so that only what is missing is made.

    HOME/LABEL-KEY/            a media folder; KEY is the hash of all that decides an image besides its prompt and seed
    HOME/LABEL-KEY/P-sS.png    P is the hash of the prompt, S the seed of the noise

The manifest names the images that the present evaluation asks for; others wait for one that does. The images of a batch
get their names together: after a kill the rest is cut into the batches that it would have been cut into, and the images
are the same, byte for byte. Processes share the batches; a batch does not depend on their number.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffpo.compat import pick_device
from diffpo.disk.ahead import chunks
from diffpo.disk.files import write_json
from diffpo.disk.progress import progress
from diffpo.generation.generate import DTYPES, GenerateOptions, describe
from diffpo.generation.sampling import sample_images
from diffpo.media.folder import SETTINGS, Media, write_manifest
from diffpo.media.prompts import PromptSet, write_prompts
from diffpo.models.pipelines import Model, find_model, open_pipeline

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import Console

Noise = Literal["per-prompt", "shared"]
DECISIVE = (
    *("weights", "lora_weights", "denoiser_weights", "pipeline", "scheduler"),
    *("steps", "guidance", "size", "negative_prompt", "dtype", "device"),
)
"""Settings that make another image. The number of images at a time is not among them: it changes their last bits."""
_BATCH = ".batch-"
_UNFINISHED = ".tmp-"


@dataclass(frozen=True)
class Work:
    """What is asked of one model, and what of it is missing."""

    options: GenerateOptions
    model: Model
    device: str
    folder: Path
    settings: dict[str, Any]
    media: list[Media]
    missing: list[list[Media]]
    """By batch."""

    @property
    def images_missing(self) -> int:
        """How many images are missing."""
        return sum(map(len, self.missing))


def find_work(
    options: GenerateOptions, prompts: PromptSet, home: Path, label: str, noise: Noise, labels: Collection[str] = ()
) -> Work:
    """See what is there and what is missing; several processes may look at once, before any begins.

    Args:
        options: What to sample with; `distinct_seeds` is not looked at.
        prompts: What to sample.
        home: The folder of all models' folders.
        label: Name of the model in tables and grids.
        noise: `per-prompt`: no two prompts share their noise, and that of a prompt depends on nothing else; right for
            statistics. `shared`: every prompt gets the seeds as they are.
        labels: Of all models that are judged: a folder of the same model under another one was renamed by the user.

    Raises:
        UserError: If the model or the device is not there.
    """
    model = find_model(options.model, lora=options.lora, denoiser=options.denoiser, tuned=options.tuned)
    device = pick_device(options.device)
    settings = describe(options, model, prompts, label, device) | {"distinct_seeds": noise == "per-prompt"}
    key = json.dumps({name: settings[name] for name in DECISIVE}, sort_keys=True)
    folder = _claim_folder(home, label, _hash(key, 4), labels)
    _finish_batches(folder)
    media = [
        Media(file=f"{_hash(prompt, 8)}-s{seed}.png", prompt=prompt, prompt_id=i, seed=seed, model=label)
        for i, prompt in enumerate(prompts.prompts)
        for seed in (seed + (_first_seed(prompt) if noise == "per-prompt" else 0) for seed in options.seeds)
    ]
    missing = chunks([item for item in media if not (folder / item.file).is_file()], options.batch)
    return Work(options, model, device, folder, settings, media, missing)


def make_images(work: Work, console: Console, *, rank: int = 0, world: int = 1) -> None:
    """Make this process's share of what is missing. Each batch is on the disk whole, or not at all.

    Raises:
        UserError: If the model cannot be loaded, the size is not possible, or an image comes out as not-a-number.
    """
    batches = work.missing[rank::world]
    if not batches:
        return
    import gc

    import torch

    _sample(work, batches, console)
    gc.collect()  # pipelines hold themselves
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _sample(work: Work, batches: Sequence[Sequence[Media]], console: Console) -> None:
    options = work.options
    pipeline = open_pipeline(work.model, dtype=DTYPES[options.dtype], device=work.device)
    with progress(f"Generating {work.settings['label']}", sum(map(len, batches)), console=console) as advance:
        for batch in batches:
            images = sample_images(
                pipeline,
                [item.prompt for item in batch],
                [item.seed for item in batch],
                steps=options.steps,
                guidance=options.guidance,
                batch=options.batch,
                size=options.size,
                negative_prompt=options.negative_prompt,
            )
            _write_batch(work.folder, batch, images)
            advance(len(batch))


def finish_images(work: Work, prompts: PromptSet) -> None:
    """Make the folder a media folder of what was asked, once all images are there: one process does it."""
    write_prompts(work.folder, prompts)
    write_json(work.folder / SETTINGS, work.settings)
    write_manifest(work.folder, work.media)


def _claim_folder(home: Path, label: str, key: str, labels: Collection[str]) -> Path:
    """The folder of a model; that of the same model under a label of old is taken over."""
    folder = home / f"{label}-{key}"
    for other in home.glob(f"*-{key}"):
        if other.name.removesuffix(f"-{key}") not in {label, *labels} and not folder.exists():
            with contextlib.suppress(OSError):  # another process did
                other.rename(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write_batch(folder: Path, batch: Sequence[Media], images: Sequence[Image]) -> None:
    unfinished = folder / f"{_UNFINISHED}{os.getpid()}-{batch[0].file}"
    unfinished.mkdir()
    for item, image in zip(batch, images, strict=True):
        with open(unfinished / item.file, "wb") as file:
            image.save(file, format="PNG")
            file.flush()
            os.fsync(file.fileno())
    whole = unfinished.rename(folder / f"{_BATCH}{batch[0].file}")
    _give_names(whole)


def _give_names(whole: Path) -> None:
    """Move the images of a whole batch to where they belong; several processes may do it at once."""
    for file in list(whole.iterdir()):
        with contextlib.suppress(FileNotFoundError):
            file.replace(whole.parent / file.name)
    with contextlib.suppress(OSError):
        whole.rmdir()


def _finish_batches(folder: Path) -> None:
    """Clear up after a kill: whole batches get their names, others go."""
    for path in list(folder.iterdir()):
        if path.name.startswith(_UNFINISHED) and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name.startswith(_UNFINISHED):
            path.unlink(missing_ok=True)
        elif path.name.startswith(_BATCH):
            _give_names(path)


def _first_seed(prompt: str) -> int:
    """A number of the prompt's own, below 2^31."""
    return int(_hash(prompt, 4), 16) >> 1


def _hash(text: str, size: int) -> str:
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()
