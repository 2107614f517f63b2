"""Sample grids while training: fixed prompts and seeds, the base beside the tuned model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import Accelerator
from PIL import Image

from diffpo.config.run import Config
from diffpo.config.settings import Sample
from diffpo.generation.generate import sample_images
from diffpo.media.prompts import load_prompts
from diffpo.media.sheet import Cell, Row, draw_grid
from diffpo.models.base import Denoiser
from diffpo.models.encoders import Encoders
from diffpo.training.run import note

if TYPE_CHECKING:
    from collections.abc import Sequence


class Sampler:
    """Draws `samples/step-000100.png`.

    With cached data the encoders rest on the CPU and visit the device only while images are drawn. Every process draws
    (a sharded network needs all of them); the first one writes.
    """

    def __init__(self, config: Config, policy: Denoiser, encoders: Encoders, folder: Path):
        """Remember what to draw."""
        self._sample, self._policy, self._encoders = config.sample, policy, encoders
        self._folder = folder / "samples"
        prompts = choose_prompts(config.sample)
        self._jobs = [(prompt, seed) for prompt in prompts for seed in config.sample.seeds]
        drawn = repr((self._jobs, config.sample.steps, config.sample.guidance)).encode()
        self._base = self._folder / f"base-{hashlib.blake2b(drawn, digest_size=4).hexdigest()}"
        if config.data.cache:  # nobody else needs them
            encoders.pipeline.to("cpu")

    def base(self, accelerator: Accelerator) -> None:
        """Draw the base's images, unless an earlier start of this run did; the policy must be untrained yet."""
        files = [self._file(i) for i in range(len(self._jobs))]
        missing = not all(file.exists() for file in files)
        accelerator.wait_for_everyone()
        if not missing:
            return
        images = self._images(accelerator)
        if accelerator.is_main_process:
            note(self._folder.parent, *files)
            self._file(0).parent.mkdir(parents=True, exist_ok=True)
            for file, image in zip(files, images, strict=True):
                image.save(file)
        accelerator.wait_for_everyone()

    def draw(self, accelerator: Accelerator, step: int) -> None:
        """Draw the grid of an update."""
        images = self._images(accelerator)
        if not accelerator.is_main_process:
            return
        rows = [
            Row(prompt, (Cell(Image.open(self._file(i))), Cell(images[i]))) for i, (prompt, _) in enumerate(self._jobs)
        ]
        file = self._folder / f"step-{step:06d}.png"
        note(self._folder.parent, file)
        draw_grid(["base", f"step {step}"], rows).save(file)

    def _file(self, i: int) -> Path:
        return self._base / f"{i:03d}.png"

    def _images(self, accelerator: Accelerator) -> Sequence[Image.Image]:
        network = accelerator.unwrap_model(self._policy.network)  # still under accelerate's autocast
        with self._encoders.placed(accelerator.device, self._policy.dtype):
            return sample_images(
                self._encoders.with_denoiser(network),
                [prompt for prompt, _ in self._jobs],
                [seed for _, seed in self._jobs],
                steps=self._sample.steps,
                guidance=self._sample.guidance,
                batch=self._sample.batch,
            )


def choose_prompts(sample: Sample) -> list[str]:
    """Return the config's prompts, or those of the file or the named set."""
    return list(load_prompts(sample.prompts).prompts) if isinstance(sample.prompts, str) else list(sample.prompts)
