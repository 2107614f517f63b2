"""The measurements behind the numbers in the card of the shapes world."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from diffpo.worlds.shapes.annotators import ANNOTATORS, measure, utility
from diffpo.worlds.shapes.render import render_batch, to_uint8
from diffpo.worlds.shapes.scenes import parse_caption, sample_prompts
from diffpo.worlds.shapes.verify import ATTRIBUTES, ImageLike, judge, see
from shapes_builder.building import step_generator
from shapes_builder.make_pairs import from_jpeg, generate
from shapes_builder.sampling import BASE_STYLE, sample_scenes

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusionPipeline


def measure_vae(vae: AutoencoderKL, n: int = 400) -> dict[str, float]:
    """What the verifier says of held-out scenes after a round trip through the VAE, and the latents' deviation."""
    prompts = sample_prompts("heldout", n, seed=11)
    scenes = sample_scenes([parse_caption(p) for p in prompts], step_generator(11, 0), BASE_STYLE)
    truth = render_batch(scenes)
    with torch.no_grad():
        latents = torch.cat([vae.encode(part * 2 - 1).latent_dist.mean for part in truth.split(50)])
        decoded = torch.cat([vae.decode(part).sample for part in latents.split(50)]) / 2 + 0.5
    deviation = float((latents * vae.config.scaling_factor).std())
    l1 = float((decoded.clamp(0, 1) - truth).abs().mean())
    return summarize(list(to_uint8(decoded)), prompts) | {"latent_std": deviation, "l1": l1}


def measure_base(pipeline: StableDiffusionPipeline, n: int = 400, label: str = "heldout") -> dict[str, float]:
    """What the verifier and the judge say of images for held-out prompts, one image each."""
    prompts = sample_prompts("heldout", n, seed=0)
    images = generate(pipeline, prompts, list(range(5_000_000, 5_000_000 + n)), label=label)
    return summarize(images, prompts) | {"utility": float(np.mean([*map(utility, images, prompts)]))}


def summarize(images: Sequence[ImageLike], captions: Sequence[str]) -> dict[str, float]:
    """Share of the images that pass, mean score, share right of each attribute, means of what taste looks at."""
    seen = [see(image) for image in images]
    verdicts = [judge(s, parse_caption(c)) for s, c in zip(seen, captions, strict=True)]
    result = {"passed": np.mean([v.passed for v in verdicts]), "score": np.mean([v.score for v in verdicts])}
    result |= {name: np.mean([getattr(v, name) for v in verdicts]) for name in ATTRIBUTES}
    tastes = [taste for taste in map(measure, seen) if taste is not None]
    result |= {name: np.mean([getattr(t, name) for t in tastes]) for name in ("coverage", "saturation", "centring")}
    return {key: round(float(value), 4) for key, value in result.items()}


def measure_pairs(rows: Sequence[dict]) -> dict[str, float]:
    """Ties, how often the annotator's and the judge's utility agree with the choice, models of the chosen side."""
    ties = sum(row["label_0"] == 0.5 for row in rows)
    clear = [row for row in rows if row["label_0"] != 0.5]
    agree = {"annotator": 0.0, "judge": 0.0}
    worth = {"chosen": 0.0, "rejected": 0.0}
    for row in clear:
        images = [from_jpeg(row[f"jpg_{side}"]) for side in (0, 1)]
        best = 0 if row["label_0"] == 1.0 else 1
        judged = [utility(image, row["caption"]) for image in images]
        own = [utility(image, row["caption"], row["user_id"]) for image in images]
        agree["judge"] += judged[best] > judged[1 - best]
        agree["annotator"] += own[best] > own[1 - best]
        worth["chosen"] += judged[best]
        worth["rejected"] += judged[1 - best]
    kinds = Counter("-".join(sorted((row["model_0"], row["model_1"]))) for row in rows)
    result = {"rows": len(rows), "ties": ties, "tie_rate": ties / len(rows)}
    result |= {f"{name}_agrees": value / len(clear) for name, value in agree.items()}
    result |= {f"judge_utility_{name}": value / len(clear) for name, value in worth.items()}
    result |= {f"rows_{kind}": count for kind, count in kinds.items()}
    result |= {f"rows_{user}": sum(row["user_id"] == user for row in rows) for user in ANNOTATORS}
    return {key: round(float(value), 4) for key, value in result.items()}
