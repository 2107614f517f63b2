"""Builds the moving world: VAE, base pipeline, pair table, prompt lists.

    python scripts/build_moving.py                    # everything: about half an hour on one idle CPU core
    python scripts/build_moving.py --stage base       # one stage; it needs those before it

Every stage is resumable: the same command continues after a kill. Checkpoints go to --work, results to --output. What
is measured goes to the screen and to measured.json in --work. `--stage measure` measures the base model as far as it
has been trained, also while it is being trained.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from diffpo.compat import ensure_torchvision  # noqa: E402

ensure_torchvision()

from moving_builder import make_pairs, train_base, train_vae  # noqa: E402
from moving_builder.measure_world import gate, measure_base, measure_vae  # noqa: E402
from shapes_builder.building import Plan, note, replace_folder, run_in_float32  # noqa: E402

from diffpo.worlds.moving.scenes import SPLITS, sample_prompts  # noqa: E402

STAGES = ("vae", "base", "measure", "pairs", "prompts")
PROMPTS = {"train": 300, "validation": 48, "heldout": 61}


def main() -> None:
    """Run the stages that were asked for, in their order."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    run = {"vae": vae, "base": base, "measure": measure, "pairs": pairs, "prompts": prompts}
    for stage in STAGES if args.stage == "all" else (args.stage,):
        print(f"--- {stage}", flush=True)
        run[stage](args)


def parse_arguments() -> argparse.Namespace:
    """The command line; the defaults made the shipped assets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument(
        "--work", type=Path, default=REPO / "runs" / "build_moving", help="checkpoints, logs, measurements"
    )
    parser.add_argument("--output", type=Path, default=REPO / "assets" / "moving")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae-steps", type=int, nargs=2, default=(3300, 1850), help="of 6 clips, in two rounds")
    parser.add_argument("--clips", type=int, default=10_240, help="clips whose latents the transformer is trained on")
    parser.add_argument("--base-steps", type=int, default=1800, help="of 32 clips; see the gate")
    parser.add_argument("--measured-clips", type=int, default=200, help="clips that the base model is measured on")
    parser.add_argument("--pairs", type=int, nargs=2, default=(500, 60), help="of each kind: train, validation")
    return parser.parse_args()


def vae(args: argparse.Namespace) -> None:
    """Train the VAE, write it to the work folder, measure its round trip."""
    first = Plan(args.vae_steps[0], learning_rate=2e-3, ema=0.998, seed=args.seed)
    second = Plan(args.vae_steps[1], learning_rate=1.5e-3, ema=0.998, seed=args.seed + 1)
    model = train_vae.train_vae(first, second, 6, args.work, args.device).cpu()
    replace_folder(args.work / "vae", model.save_pretrained)
    note(args.work, "vae", measure_vae(model))


def base(args: argparse.Namespace) -> None:
    """Train transformer and text encoder on cached latents, then write the pipeline."""
    cache = train_base.cache_latents(load_vae(args), args.clips, args.seed, args.work, args.device)
    plan = Plan(args.base_steps, learning_rate=1.5e-3, warmup=200, ema=0.999, seed=args.seed, horizon=5000)
    train_base.train_base(train_base.make_base(args.seed), cache, plan, 32, args.work, args.device)
    export_pipeline(args)


def measure(args: argparse.Namespace) -> None:
    """Judge clips of the base model for held-out prompts from pure noise, and compare with the gate."""
    measured = measure_base(train_base.make_pipeline(load_vae(args), args.work), args.measured_clips)
    note(args.work, "base", measured)
    print(gate(measured), flush=True)


def pairs(args: argparse.Namespace) -> None:
    """Make clips of both kinds with the base model, let the annotators label them, write the tables."""
    pipeline = train_base.make_pipeline(load_vae(args), args.work)
    for kind in make_pairs.KINDS:
        for split, n in zip(("train", "validation"), args.pairs, strict=True):
            jobs = make_pairs.plan_pairs(kind, split, n, args.seed)
            rows = make_pairs.label_pairs(jobs, make_pairs.make_clips(pipeline, jobs, args.work / "clips"), args.seed)
            make_pairs.write_table(rows, args.output / kind / f"{split}.parquet", split)
            note(args.work, f"{kind}/{split}", make_pairs.measure_pairs(rows))


def prompts(args: argparse.Namespace) -> None:
    """The prompt lists."""
    folder = args.output / "prompts"
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        lines = sample_prompts(split, PROMPTS[split], seed=0)
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def export_pipeline(args: argparse.Namespace) -> None:
    """Write the pipeline with fp16 weights."""

    def write(folder: Path) -> None:
        pipeline = train_base.make_pipeline(load_vae(args), args.work).to(torch.float16)
        pipeline.vae.register_to_config(_name_or_path="")  # where it lay while it was trained
        pipeline.save_pretrained(folder)
        run_in_float32(folder / "text_encoder")

    replace_folder(args.output / "base", write)


def load_vae(args: argparse.Namespace):
    """The trained VAE from the work folder."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan.from_pretrained(args.work / "vae").eval()


if __name__ == "__main__":
    main()
