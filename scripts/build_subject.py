"""Builds the subject world: the four pictures of the subject, and templates of the prompts to learn from.

    python scripts/build_subject.py        # seconds, beside the shapes world's VAE

What the VAE's round trip leaves of the subject goes to the screen; `diffpo/worlds/subject/verify.py` states it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from diffpo.compat import ensure_torchvision  # noqa: E402

ensure_torchvision()

from diffpo.disk.files import write_file  # noqa: E402
from diffpo.worlds.assets import asset_path  # noqa: E402
from diffpo.worlds.shapes.render import to_uint8  # noqa: E402
from diffpo.worlds.subject.pictures import draw_pictures, pictures  # noqa: E402
from diffpo.worlds.subject.scenes import CLASS, WORD, sample_prompts  # noqa: E402
from diffpo.worlds.subject.verify import best_overlap  # noqa: E402


def main() -> None:
    """Write the assets, and measure the round trip."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=REPO / "assets" / "subject")
    parser.add_argument("--prompts", type=int, default=64, help="templates to learn from")
    args = parser.parse_args()
    (args.output / "references").mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures()):
        picture.save(args.output / "references" / f"{number}.png", optimize=True)
    templates = [prompt.replace(f"{WORD} {CLASS}", "{}") for prompt in sample_prompts("train", args.prompts)]
    write_file(args.output / "prompts" / "train.txt", "".join(f"{template}\n" for template in templates))
    print(f"overlap with the subject after the VAE's round trip: {measure_round_trip():.3f}")


def measure_round_trip() -> float:
    """The mean overlap of the four pictures with the subject, once the base's VAE has encoded and decoded them."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(asset_path("shapes/pipeline/vae"), torch_dtype=torch.float32)
    drawn = torch.from_numpy(np.stack(draw_pictures())).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        decoded = vae.decode(vae.encode(drawn).latent_dist.mean).sample
    return float(np.mean([best_overlap(image) for image in to_uint8(decoded / 2 + 0.5)]))


if __name__ == "__main__":
    main()
