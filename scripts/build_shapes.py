"""Builds the shapes world: VAE, base pipeline, pair table, PickScore-style CLIP, prompt lists.

    python scripts/build_shapes.py                    # everything: about two hours on one CPU core
    python scripts/build_shapes.py --stage unet       # one stage; it needs those before it

Every stage is resumable: the same command continues after a kill. Checkpoints go to --work, results to --output. What
is measured goes to the screen and to measured.json in --work: the numbers of the card in `assets/shapes/README.md`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from diffpo.compat import ensure_torchvision  # noqa: E402

ensure_torchvision()

from shapes_builder import make_pairs, train_base, train_pickscore, train_vae  # noqa: E402
from shapes_builder.building import Plan, load_average, note, replace_folder, run_in_float32  # noqa: E402
from shapes_builder.measure_world import measure_base, measure_pairs, measure_vae  # noqa: E402
from shapes_builder.models import make_clip  # noqa: E402

from diffpo.worlds.shapes.scenes import SPLITS, sample_prompts  # noqa: E402

STAGES = ("vae", "decoder", "unet", "clip", "pairs", "pickscore", "prompts")
PAIRS = {"train": 2700, "validation": 300}
PROMPTS = {"train": 400, "validation": 200, "heldout": 200}


def main() -> None:
    """Run the stages that were asked for, in their order."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    run = {
        "vae": vae,
        "decoder": decoder,
        "unet": unet,
        "clip": clip,
        "pairs": pairs,
        "pickscore": pickscore,
        "prompts": prompts,
    }
    for stage in STAGES if args.stage == "all" else (args.stage,):
        print(f"--- {stage}", flush=True)
        run[stage](args)


def parse_arguments() -> argparse.Namespace:
    """The command line; the defaults made the shipped assets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument(
        "--work", type=Path, default=REPO / "runs" / "build_shapes", help="checkpoints, logs, measurements"
    )
    parser.add_argument("--output", type=Path, default=REPO / "assets" / "shapes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae-steps", type=int, default=3000, help="of 8 images")
    parser.add_argument("--decoder-steps", type=int, default=5000, help="of 8 images")
    parser.add_argument("--scenes", type=int, default=12_000, help="scenes whose latents the UNet is trained on")
    parser.add_argument("--weak-steps", type=int, default=700, help="of 64 latents: the weaker model of the pair table")
    parser.add_argument("--base-steps", type=int, default=2400, help="of 64 latents, from there on: the base")
    parser.add_argument("--clip-steps", type=int, default=1000, help="of 32 images with 96 hard captions")
    parser.add_argument("--pickscore-steps", type=int, default=400, help="of 32 pairs")
    return parser.parse_args()


def vae(args: argparse.Namespace) -> None:
    """Train the VAE, write it to the work folder, measure its round trip."""
    plan = Plan(args.vae_steps, learning_rate=1.2e-3, ema=0.998, seed=args.seed)
    model = train_vae.train_vae(plan, 8, args.work, args.device).cpu()
    model.save_pretrained(args.work / "vae")
    note(args.work, "vae", measure_vae(model))


def decoder(args: argparse.Namespace) -> None:
    """Train the decoder alone for longer (the latents stay as they are) and measure the round trip again."""
    plan = Plan(args.decoder_steps, learning_rate=6e-4, warmup=50, ema=0.998, seed=args.seed + 1)
    model = train_vae.train_decoder(load_vae(args), plan, 8, args.work, args.device).cpu()
    replace_folder(args.work / "vae", model.save_pretrained)
    note(args.work, "decoder", measure_vae(model))


def unet(args: argparse.Namespace) -> None:
    """Train UNet and text encoder on cached latents, in two rounds; the weaker model is the end of the first.

    The second exports the pipeline. Both are measured on held-out prompts.
    """
    cache = train_base.cache_latents(load_vae(args), args.scenes, args.seed, args.work, args.device)
    networks = train_base.make_base(args.seed)
    if not (args.work / "weak.pt").exists():
        train_base.pretrain_text(networks["text_encoder"], args.seed)
    for name, steps in (("weak", args.weak_steps), ("base", args.base_steps)):
        plan = Plan(steps, learning_rate=1e-3, ema=0.998, seed=args.seed)
        train_base.train_base(name, networks, cache, plan, 64, args.work, args.device)
        note(args.work, name, measure_base(train_base.make_pipeline(load_vae(args), name, args.work)))
    export_pipeline(args)


def clip(args: argparse.Namespace) -> None:
    """Contrastive training of the scorer on rendered scenes."""
    plan = Plan(args.clip_steps, learning_rate=1e-3, seed=args.seed)
    train_pickscore.train_contrastive(plan, 32, args.work, args.device)


def pairs(args: argparse.Namespace) -> None:
    """Images of the base and of the weaker model, labelled by the annotators."""
    pipelines = {name: train_base.make_pipeline(load_vae(args), name, args.work) for name in ("base", "weak")}
    for split, n in PAIRS.items():
        planned = make_pairs.plan_pairs(split, n, args.seed)
        jpegs = make_pairs.make_images(pipelines, planned, args.work / "images")
        rows = make_pairs.label_pairs(planned, jpegs, args.seed)
        make_pairs.write_table(rows, args.output / "pairs" / f"{split}.parquet", split)
        note(args.work, f"pairs/{split}", measure_pairs(rows))


def pickscore(args: argparse.Namespace) -> None:
    """Fine-tune the CLIP on the train pairs, export it, measure its agreement with the annotators."""
    rows = {split: read_table(args.output / "pairs" / f"{split}.parquet") for split in PAIRS}
    model = make_clip()
    load_average("clip", model, args.work)
    before = train_pickscore.agreement(model.eval(), rows["validation"])
    plan = Plan(args.pickscore_steps, learning_rate=1e-4, warmup=20, ema=0.99, seed=args.seed)
    train_pickscore.train_on_pairs(model.to(args.device), rows["train"], plan, 32, args.work, args.device).cpu()
    after = {split: train_pickscore.agreement(model, rows[split]) for split in PAIRS}
    note(args.work, "pickscore", {"validation before fine-tuning": before, **after})

    def write(folder: Path) -> None:
        train_pickscore.save_pickscore(model, folder)
        run_in_float32(folder)

    replace_folder(args.output / "pickscore", write)


def prompts(args: argparse.Namespace) -> None:
    """The prompt lists; the 200 held-out ones are what the demo is measured on."""
    folder = args.output / "prompts"
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        lines = sample_prompts(split, PROMPTS[split], seed=0)
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def export_pipeline(args: argparse.Namespace) -> None:
    """Write the pipeline with fp16 weights."""

    def write(folder: Path) -> None:
        pipeline = train_base.make_pipeline(load_vae(args), "base", args.work).to(torch.float16)
        pipeline.vae.register_to_config(_name_or_path="")  # where it lay while it was trained
        pipeline.save_pretrained(folder)
        run_in_float32(folder / "text_encoder")

    replace_folder(args.output / "pipeline", write)


def load_vae(args: argparse.Namespace):
    """The trained VAE from the work folder."""
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(args.work / "vae").eval()


def read_table(path: Path) -> list[dict]:
    """All rows of a parquet file."""
    from pyarrow import parquet

    return parquet.read_table(path).to_pylist()


if __name__ == "__main__":
    main()
