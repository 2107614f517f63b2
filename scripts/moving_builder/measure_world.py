"""The measurements behind the numbers in the card of the moving world, and the gate that its base model must pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from shapes_builder.building import step_generator

from diffpo.worlds.moving.render import render_batch, to_uint8
from diffpo.worlds.moving.scenes import FRAME_SIZE, FRAMES, parse_caption, sample_prompts
from diffpo.worlds.moving.verify import ATTRIBUTES, amplitude, judge, largest, see
from moving_builder.models import MAX_TOKENS
from moving_builder.sampling import BASE_STYLE, sample_clips
from moving_builder.train_vae import statistics

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan, WanPipeline

SAMPLER_STEPS, GUIDANCE = 12, 1.0  # without guidance: it would hide most of what preferences have to mend
GATE = {"direction": (0.7, 1.0), "shape": (0.6, 1.0), "passed": (0.3, 0.6)}
"""What a base model must reach from pure noise, and what it must leave to preference training."""


def measure_vae(vae: AutoencoderKLWan, n: int = 200) -> dict[str, float]:
    """What the verifier says of held-out clips after a round trip through the VAE, and how wide the latents are."""
    prompts = sample_prompts("heldout", n, seed=11)
    clips = sample_clips([parse_caption(p) for p in prompts], step_generator(11, 0), BASE_STYLE)
    truth = render_batch(clips)
    with torch.no_grad():
        latents = torch.cat([vae.encode(part * 2 - 1).latent_dist.mean for part in truth.split(20)])
        decoded = torch.cat([vae.decode(part).sample for part in latents.split(20)]) / 2 + 0.5
    mean, deviation = statistics(vae)
    normal = (latents - mean) / deviation
    extra = {"latent_std": normal.std(), "latent_mean": normal.mean(), "l1": (decoded.clamp(0, 1) - truth).abs().mean()}
    return summarize(list(to_uint8(decoded)), prompts) | {key: round(float(v), 4) for key, v in extra.items()}


def measure_base(pipeline: WanPipeline, n: int = 200, tokens: int = MAX_TOKENS) -> dict[str, float]:
    """What the verifier says of clips for held-out prompts, one clip each, from pure noise."""
    prompts = sample_prompts("heldout", n, seed=0)
    clips = generate(pipeline, prompts, list(range(5_000_000, 5_000_000 + n)), tokens=tokens)
    return summarize(clips, prompts)


def gate(measured: dict[str, float]) -> str:
    """Say for each number of the gate what is asked and whether it is reached."""
    lines = [
        f"{name} {measured[name]:.3f} of [{low}, {high}]: {'yes' if low <= measured[name] <= high else 'NO'}"
        for name, (low, high) in GATE.items()
    ]
    return "gate: " + ", ".join(lines)


def generate(
    pipeline: WanPipeline, prompts: Sequence[str], seeds: Sequence[int], batch_size: int = 32, tokens: int = MAX_TOKENS
) -> list[np.ndarray]:
    """Clips for prompts, uint8 `[9 32 32 3]`, each from its own seed: batch make-up does not matter."""
    clips: list[np.ndarray] = []
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        with torch.no_grad():
            made = pipeline(
                list(prompts[part]),
                height=FRAME_SIZE,
                width=FRAME_SIZE,
                num_frames=FRAMES,
                num_inference_steps=SAMPLER_STEPS,
                guidance_scale=GUIDANCE,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
                max_sequence_length=tokens,
                output_type="pt",
            ).frames
        clips += list(to_uint8(made.transpose(1, 2)))
    return clips


def summarize(clips: Sequence[np.ndarray], captions: Sequence[str]) -> dict[str, float]:
    """Share of the clips that pass, mean score, share of each attribute, motion in pixels per frame."""
    seen = [see(clip) for clip in clips]
    verdicts = [judge(s, parse_caption(c)) for s, c in zip(seen, captions, strict=True)]
    motions = [amplitude([largest(frame) for frame in frames]) for frames in seen]
    result = {"passed": np.mean([v.passed for v in verdicts]), "score": np.mean([v.score for v in verdicts])}
    result |= {name: np.mean([v.attributes[name] for v in verdicts]) for name in ATTRIBUTES}
    result |= {"segments": np.mean([s.passed for v in verdicts for s in v.segments]), "motion": np.mean(motions)}
    free = [m for m, caption in zip(motions, captions, strict=True) if not parse_caption(caption).speed]
    result |= {"motion_without_a_speed_word": np.mean(free)} if free else {}
    return {key: round(float(value), 4) for key, value in result.items()}
