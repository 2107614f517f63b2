"""Makes the pair tables of the moving world: two clips for a prompt, labelled as a whole and segment by segment.

    independent   two seeds from pure noise, as in plain DPO
    guided        one drawn clip of the prompt, corrupted to one noise level for both sides by two seeds, and denoised
                  from there (DenseDPO, arXiv:2506.03517, section 4.1): the two move alike and differ in detail

The noise level eta is the sigma at which denoising starts, so that z = (1 - eta) x + eta noise. Each pair is shown to
one annotator, who labels the clips as wholes and each segment. Ties are told by thresholds of their own for each kind
and for wholes and segments. Two clips that tie as wholes keep their segments' labels, with a preference of one half.

Guided pairs are meant to move alike, so that their labels say nothing about motion. From the high noise levels that
this world needs, many do not, and of two segments the slower one has fewer artefacts: the labels would favour slow
motion, by 0.11 pixels per frame. So what does not move alike (`ALIKE`) is a tie, whatever else is seen.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import hypot, inf, nan
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from shapes_builder.building import step_generator
from torch import Tensor

from diffpo.media.frames import decode_clip
from diffpo.worlds.moving.render import render_batch, to_uint8
from diffpo.worlds.moving.scenes import FPS, FRAMES, SEGMENTS, Split, parse_caption, sample_prompts, split_of
from diffpo.worlds.moving.verify import SeenFrame, amplitude, largest, see, segment_velocity
from moving_builder.annotators import ANNOTATORS, assess, label, tie_threshold
from moving_builder.measure_world import SAMPLER_STEPS, generate
from moving_builder.models import FLOW_SHIFT, SHORT_PADDING
from moving_builder.sampling import BASE_STYLE, sample_clips
from moving_builder.train_vae import statistics

if TYPE_CHECKING:
    from diffusers import WanPipeline

Kind = Literal["independent", "guided"]
KINDS: tuple[Kind, ...] = ("independent", "guided")
ETA = (0.94, 0.98)
"""The paper has 0.65 to 0.8. Here a shape is large beside the picture and shows through so much noise: the model makes
hardly any of the faults that it makes from pure noise, and there is nothing to prefer."""
ALIKE: dict[Kind, float] = {"independent": inf, "guided": 0.4}
"""Pixels per frame by which the motion of two segments may differ where they are compared; half of it for whole clips,
which are means over four segments."""
BATCH = 16  # pairs


@dataclass(frozen=True)
class Job:
    """One pair to make."""

    prompt: str
    kind: Kind
    seeds: tuple[int, int]
    eta: float
    """The noise level that denoising starts from; 1 for independent clips."""


def plan_pairs(kind: Kind, split: Split, n: int, seed: int) -> list[Job]:
    """Prompts, seeds and noise levels of `n` pairs."""
    generator = step_generator(seed, 20 + KINDS.index(kind))
    prompts = sample_prompts(split, n, seed + KINDS.index(kind))
    low, high = ETA if kind == "guided" else (1.0, 1.0)
    etas = low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64)
    first = 1_000_000 * (1 + KINDS.index(kind)) + (0 if split == "train" else 500_000)
    return [
        Job(prompt, kind, (first + 2 * i, first + 2 * i + 1), eta)
        for i, (prompt, eta) in enumerate(zip(prompts, etas.tolist(), strict=True))
    ]


def make_clips(pipeline: WanPipeline, jobs: Sequence[Job], work: Path) -> list[tuple[bytes, bytes]]:
    """The encoded clips of every pair; finished batches are kept in `work`, so that a killed run continues."""
    work.mkdir(parents=True, exist_ok=True)
    make: dict[Kind, Callable[[WanPipeline, Sequence[Job]], list[np.ndarray]]]
    make = {"independent": _from_noise, "guided": _from_truth}
    made: list[tuple[bytes, bytes]] = []
    for start in range(0, len(jobs), BATCH):
        batch = jobs[start : start + BATCH]
        paths = [[work / f"{job.kind}-{seed}.mp4" for seed in job.seeds] for job in batch]
        if not all(path.exists() for pair in paths for path in pair):
            clips = make[batch[0].kind](pipeline, batch)
            for path, clip in zip((path for pair in paths for path in pair), clips, strict=True):
                path.write_bytes(to_bytes(clip))
            print(f"{batch[0].kind} pairs {start + len(batch)}/{len(jobs)}", flush=True)
        made += [(a.read_bytes(), b.read_bytes()) for a, b in paths]
    return made


def label_pairs(jobs: Sequence[Job], clips: Sequence[tuple[bytes, bytes]], seed: int) -> list[dict[str, object]]:
    """Each pair of one kind shown to one annotator: rows of a pair table, the better clip as the chosen one."""
    generator = step_generator(seed, 30)
    people = sorted(ANNOTATORS)
    users = [people[i] for i in torch.randint(len(people), (len(jobs),), generator=generator).tolist()]
    seen = [[see(from_bytes(side)) for side in pair] for pair in clips]
    judged = [
        tuple(assess(side, job.prompt, user) for side in pair)
        for pair, job, user in zip(seen, jobs, users, strict=True)
    ]
    motions = np.array([[_motions(side) for side in pair] for pair in seen])
    limits = ALIKE[jobs[0].kind] * np.array([0.5] + [1.0] * SEGMENTS)
    differences = np.array([(a.whole - b.whole, *np.subtract(a.segments, b.segments)) for a, b in judged])
    differences[np.abs(motions[:, 0] - motions[:, 1]) > limits] = 0
    whole, parts = tie_threshold(differences[:, 0].tolist()), tie_threshold(differences[:, 1:].ravel().tolist())
    rows = []
    for i, (job, pair, user) in enumerate(zip(jobs, clips, users, strict=True)):
        better = label(differences[i, 0], whole, generator)
        order = (1, 0) if better < 0 else (0, 1)
        segments = [label(difference, parts, generator) for difference in differences[i, 1:]]
        row: dict[str, object] = {"prompt": job.prompt}
        for name, side in zip(("chosen", "rejected"), order, strict=True):
            moved = round(float(motions[i, side, 0]), 4)
            row |= {name: pair[side], f"{name}_seed": job.seeds[side], f"{name}_motion": moved}
        row |= {"segments": [-x for x in segments] if better < 0 else segments}
        row |= {"preference": 0.5 if better == 0 else 1.0, "kind": job.kind, "eta": round(job.eta, 4), "user_id": user}
        rows.append(row)
    return rows


def measure_pairs(rows: Sequence[dict]) -> dict[str, float]:
    """Ties, pairs with both signs, and how much slower the chosen clip is."""
    labels = np.array([row["segments"] for row in rows])
    clear = [row for row in rows if row["preference"] != 0.5]
    slower = [row["chosen_motion"] - row["rejected_motion"] for row in clear]
    result = {
        "rows": len(rows),
        "ties": 1 - len(clear) / len(rows),
        "segment_ties": (labels == 0).mean(),
        "some_segment_clear": (labels != 0).any(1).mean(),
        "both_signs": ((labels > 0).any(1) & (labels < 0).any(1)).mean(),
        "motion_differs": np.mean([abs(row["chosen_motion"] - row["rejected_motion"]) for row in rows]),
        "chosen_faster_by": np.mean(slower),
        "chosen_slower": np.mean([difference < 0 for difference in slower]),
        "bytes_per_pair": np.mean([len(row["chosen"]) + len(row["rejected"]) for row in rows]),
    }
    return {key: round(float(value), 4) for key, value in result.items()}


def write_table(rows: Sequence[dict], path: Path, split: Split) -> None:
    """Write rows as parquet, after a last look that every caption is of the split."""
    import pyarrow
    from pyarrow import parquet

    assert all(split_of(row["prompt"]) == split and len(row["segments"]) == SEGMENTS for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


def to_bytes(clip: np.ndarray) -> bytes:
    """An mp4 in RGB: a quarter of a PNG's size, off by 1.4 of 255 levels in the mean, 0.07 in units of the latents."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264rgb", rate=FPS, options={"qp": "20", "preset": "veryslow"})
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt, stream.codec_context.thread_count = "rgb24", 1
        for frame in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def from_bytes(data: bytes) -> np.ndarray:
    """The frames of a clip, uint8 `[9 h w 3]`."""
    return np.stack([np.asarray(frame) for frame in decode_clip(data, FRAMES).frames])


def _from_noise(pipeline: WanPipeline, jobs: Sequence[Job]) -> list[np.ndarray]:
    prompts = [job.prompt for job in jobs for _ in job.seeds]
    return generate(pipeline, prompts, [seed for job in jobs for seed in job.seeds], tokens=SHORT_PADDING)


@torch.no_grad()
def _from_truth(pipeline: WanPipeline, jobs: Sequence[Job]) -> list[np.ndarray]:
    drawn = [sample_clips([parse_caption(job.prompt)], step_generator(job.seeds[0], 0), BASE_STYLE)[0] for job in jobs]
    truth = pipeline.vae.encode(render_batch(drawn) * 2 - 1).latent_dist.mode()
    mean, deviation = statistics(pipeline.vae)
    x0 = ((truth - mean) / deviation).repeat_interleave(2, dim=0)
    seeds = [seed for job in jobs for seed in job.seeds]
    noise = torch.stack([torch.randn(x0.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    eta = torch.tensor([job.eta for job in jobs for _ in job.seeds])
    latents = denoise(pipeline, corrupt(x0, noise, eta), eta, [job.prompt for job in jobs for _ in job.seeds])
    decoded = pipeline.vae.decode(latents * deviation + mean).sample
    return list(to_uint8(decoded / 2 + 0.5))


def corrupt(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Z = (1 - sigma) x0 + sigma noise, with one sigma per clip, `[n]`."""
    sigma = sigma.view(-1, 1, 1, 1, 1)
    return (1 - sigma) * x0 + sigma * noise


def denoise(pipeline: WanPipeline, z: Tensor, start: Tensor, prompts: Sequence[str]) -> Tensor:
    """Denoise from a noise level of each clip's own, `[n]`, by Euler's steps."""
    text, _ = pipeline.encode_prompt(
        list(prompts), do_classifier_free_guidance=False, max_sequence_length=SHORT_PADDING
    )
    grid = levels(start)
    for sigma, after in pairwise(grid):
        flow = pipeline.transformer(z, 1000 * sigma, text, return_dict=False)[0]
        z = z + (after - sigma).view(-1, 1, 1, 1, 1) * flow
    return z


def levels(start: Tensor) -> Tensor:
    """Noise levels from each clip's start, `[n]`, down to 0: `[steps + 1, n]`.

    The start replaces the levels of the sampler's grid above it; the lower ones stay as they are. Where the starts
    differ, the first steps of those that start lower have length zero.
    """
    even = torch.linspace(1, 0, SAMPLER_STEPS + 1)
    grid = FLOW_SHIFT * even / (1 + (FLOW_SHIFT - 1) * even)
    first = int((grid >= start.max()).nonzero().max())
    return torch.minimum(grid[first:, None], start)


def _motions(seen: Sequence[SeenFrame]) -> list[float]:
    """How far the object moves, in pixels per frame: in the whole clip, then in each segment; NaN where none is seen.

    What vanishes is compared, whatever the other side does: that is a fault.
    """
    objects = [largest(frame) for frame in seen]
    velocities = [segment_velocity(objects, segment) for segment in range(SEGMENTS)]
    return [amplitude(objects), *(nan if velocity is None else hypot(*velocity) for velocity in velocities)]
