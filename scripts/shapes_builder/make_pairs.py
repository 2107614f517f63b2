"""Makes the pair table, in Pick-a-Pic's columns: images of the base and of a weaker snapshot, labelled by annotators.

Each prompt gets three images and, from them, three pairs. About half of the pairs are base against base, a quarter base
against the weaker model, a quarter weaker against weaker: there even the chosen image is mostly worse than what the
base makes on average, which tells methods that learn from contrast from those that imitate the chosen image.

Who meets whom is `diffpo data build --strategy all`; the sides and the annotator of each pair are drawn here. A choice
is noisy: a tie where the utilities differ by less than `TIE_THRESHOLD`; else Bradley-Terry with `TEMPERATURE`; then,
with probability `FLIP_RATE`, the opposite.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from diffpo.worlds.shapes.annotators import ANNOTATORS, utility
from diffpo.worlds.shapes.scenes import SPLITS, Split, sample_prompts, split_of
from shapes_builder.building import step_generator

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

SAMPLER_STEPS, GUIDANCE = 20, 4.0  # DDIM
JPEG_QUALITY = 95
TEMPERATURE = 0.2
TIE_THRESHOLD = 0.15
FLIP_RATE = 0.04
TRIPLES = (  # which models draw a prompt's three images, and for which share of the prompts
    (0.4, ("base", "base", "base")),
    (0.2, ("base", "base", "weak")),
    (0.2, ("base", "weak", "weak")),
    (0.2, ("weak", "weak", "weak")),
)


@dataclass(frozen=True)
class Job:
    """One image to make."""

    prompt: str
    model: str
    seed: int


def generate(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    batch_size: int = 64,
    label: str = "",
) -> list[Image.Image]:
    """Images for prompts, each from its own seed: batch make-up does not matter."""
    images: list[Image.Image] = []
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
        with torch.no_grad():
            images += pipeline(
                list(prompts[part]), num_inference_steps=SAMPLER_STEPS, guidance_scale=GUIDANCE, generator=generators
            ).images
        if label:
            print(f"{label} {len(images)}/{len(prompts)}", flush=True)
    return images


def plan_pairs(split: Split, n: int, seed: int) -> list[tuple[Job, Job]]:
    """Which two images each row compares, `n` rows: three of each prompt, models by `TRIPLES`, sides at random."""
    generator = step_generator(seed, 7)
    prompts = sample_prompts(split, n // 3, seed)
    pairs = []
    for number, prompt in enumerate(prompts):
        u, *sides = torch.rand(4, generator=generator).tolist()
        models = next(models for edge, models in _cumulative() if u < edge)
        first_seed = 1_000_000 * (1 + SPLITS.index(split)) + 3 * number
        jobs = [Job(prompt, model, first_seed + i) for i, model in enumerate(models)]
        for side, (a, b) in zip(sides, combinations(jobs, 2), strict=True):
            pairs.append((a, b) if side < 0.5 else (b, a))
    return pairs


def make_images(
    pipelines: dict[str, StableDiffusionPipeline], pairs: list[tuple[Job, Job]], work: Path
) -> dict[Job, bytes]:
    """The JPEG of every job; finished batches are kept in `work`, so that a killed run continues."""
    work.mkdir(parents=True, exist_ok=True)
    made: dict[Job, bytes] = {}
    for model, pipeline in pipelines.items():
        jobs = list(dict.fromkeys(job for pair in pairs for job in pair if job.model == model))
        for start in range(0, len(jobs), 64):
            batch = jobs[start : start + 64]
            paths = [work / f"{job.model}-{job.seed}.jpg" for job in batch]
            if not all(path.exists() for path in paths):
                images = generate(pipeline, [job.prompt for job in batch], [job.seed for job in batch])
                for path, image in zip(paths, images, strict=True):
                    path.write_bytes(to_jpeg(image))
                print(f"images {model} {start + len(batch)}/{len(jobs)}", flush=True)
            made |= {job: path.read_bytes() for job, path in zip(batch, paths, strict=True)}
    return made


def label_pairs(pairs: list[tuple[Job, Job]], jpegs: dict[Job, bytes], seed: int) -> list[dict[str, object]]:
    """Each pair shown to one annotator: rows with Pick-a-Pic's columns."""
    generator = step_generator(seed, 8)
    people = sorted(ANNOTATORS)
    rows = []
    for ranking, (first, second) in enumerate(pairs):
        user = people[int(torch.randint(len(people), (1,), generator=generator))]
        images = [from_jpeg(jpegs[job]) for job in (first, second)]
        label = choose(*(utility(image, first.prompt, user) for image in images), generator)
        uids = [hashlib.blake2b(jpegs[job] + str(job).encode(), digest_size=16).hexdigest() for job in (first, second)]
        row: dict[str, object] = {"caption": first.prompt, "user_id": user, "ranking_id": ranking}
        row |= {"has_label": True, "are_different": label != 0.5, "label_0": label, "label_1": 1.0 - label}
        row["best_image_uid"] = "tie" if label == 0.5 else uids[0 if label == 1.0 else 1]
        for side, job in enumerate((first, second)):
            row |= {f"jpg_{side}": jpegs[job], f"image_{side}_uid": uids[side]}
            row |= {f"model_{side}": job.model, f"seed_{side}": job.seed}
        rows.append(row)
    return rows


def choose(utility_0: float, utility_1: float, generator: torch.Generator) -> float:
    """One noisy choice between two images: the label of image 0 (1.0 preferred, 0.0 the other is, 0.5 a tie)."""
    u, flip = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    if abs(utility_0 - utility_1) < TIE_THRESHOLD:
        return 0.5
    prefers_0 = u < preference(utility_0, utility_1)
    return float(prefers_0 != (flip < FLIP_RATE))


def preference(utility_0: float, utility_1: float) -> float:
    """Bradley-Terry: P(image 0 is preferred) = sigmoid((u_0 - u_1) / temperature), before flips and ties."""
    return 1 / (1 + exp((utility_1 - utility_0) / TEMPERATURE))


def write_table(rows: list[dict[str, object]], path: Path, split: Split) -> None:
    """Write rows as parquet, after a last look that every caption is of the split."""
    import pyarrow
    from pyarrow import parquet

    wrong = [row["caption"] for row in rows if split_of(str(row["caption"])) != split]
    assert not wrong, wrong[:3]
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def to_jpeg(image: Image.Image) -> bytes:
    """JPEG without colour subsampling: edges of 64x64 images would suffer."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def from_jpeg(data: bytes) -> Image.Image:
    """The RGB image in a JPEG."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def _cumulative() -> list[tuple[float, tuple[str, ...]]]:
    edges = np.cumsum([share for share, _ in TRIPLES])
    return [(float(edge), models) for edge, (_, models) in zip(edges, TRIPLES, strict=True)]
