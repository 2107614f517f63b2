"""Make a folder that trains like Stable Diffusion 1.5: its architecture at full size with random weights, and pairs.

    python scripts/random_sd15.py FOLDER                 3.3 GB: pipeline/, pairs/, train.yaml
    python scripts/random_sd15.py FOLDER --tiny          the same of small networks, for a machine without a GPU

What it is for: to see, on a machine that reaches no network, that a whole run works and how fast it is. Speed and
memory do not depend on the numbers in the weights. The tokenizer has a token per letter; the pictures are noise.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
import torch
import yaml
from bench_cases import TINY_UNET
from PIL import Image
from tiny_texts import WIDTH, clip_tokenizer

from diffpo.compat import quiet_libraries
from diffpo.models.known import DDPM, SD15

quiet_libraries()

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel  # noqa: E402

SIZES: dict[bool, dict[str, dict[str, Any]]] = {
    False: {
        "unet": SD15,
        "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512},
        "text": {
            **{"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768},
            **{"num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 77},
        },
    },
    True: {
        "unet": TINY_UNET,
        "vae": {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "sample_size": 64},
        "text": {
            **{"vocab_size": 1000, "hidden_size": WIDTH, "intermediate_size": 32, "projection_dim": WIDTH},
            **{"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 77},
        },
    },
}
"""Whether it is tiny -> the networks' configurations."""


def make_pipeline(tiny: bool, device: str, dtype: torch.dtype) -> StableDiffusionPipeline:
    """Make the networks on `device` at random, always by the same seed."""
    sizes, tokenizer = SIZES[tiny], clip_tokenizer(77)
    last = len(tokenizer) - 1
    ids = {"bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last}
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    torch.manual_seed(0)
    with torch.device(device):
        parts = {
            "unet": UNet2DConditionModel(**sizes["unet"]),
            "vae": AutoencoderKL(scaling_factor=0.18215, **levels, **sizes["vae"]),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**sizes["text"], **ids)),
        }
    return StableDiffusionPipeline(
        **{name: part.to(dtype) for name, part in parts.items()},
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(**DDPM, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def make_pairs(folder: Path, count: int, size: int) -> None:
    """Write pictures of noise and their table."""
    folder.mkdir(parents=True, exist_ok=True)
    draws, lines = np.random.default_rng(0), []
    for row in range(count):
        files = {side: f"{row}-{side}.png" for side in ("chosen", "rejected")}
        for file in files.values():
            Image.fromarray(draws.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(
                folder / file, compress_level=1
            )
        lines.append(json.dumps({"prompt": f"picture number {row}", **files}))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")


def settings(folder: Path, tiny: bool, half: str) -> dict[str, Any]:
    """A LoRA run on them; `half` is the name of the pipeline's dtype."""
    precision = {"bfloat16": "bf16", "float16": "fp16", "float32": "no"}[half]
    return {
        "model": {"name": "lora", "path": str(folder / "pipeline"), "rank": 16, "dtype": half},
        "method": {"name": "dpo", "beta": 2000},
        "data": {
            **{"name": "pairs", "path": str(folder / "pairs" / "pairs.jsonl"), "resolution": 64 if tiny else 512},
            "cache_dir": str(folder / "cache"),
        },
        "train": {
            **{"steps": 6, "batch": 2 if tiny else 16, "mixed_precision": precision, "output": str(folder / "run")},
            "checkpoint_every": 6,
        },
    }


def main() -> None:
    """Make all of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true", help="small networks, 64 pixels a side")
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="makes the weights")
    options = parser.parse_args()
    folder = options.folder.resolve()
    pipeline = make_pipeline(options.tiny, options.device, getattr(torch, options.dtype))
    pipeline.save_pretrained(folder / "pipeline")
    make_pairs(folder / "pairs", options.pairs, 64 if options.tiny else 512)
    (folder / "train.yaml").write_text(yaml.safe_dump(settings(folder, options.tiny, options.dtype)))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"wrote {folder}: {size / 2**30:.2f} GiB\nnext: diffpo train {folder}/train.yaml")


if __name__ == "__main__":
    main()
