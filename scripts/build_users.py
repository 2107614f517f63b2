"""Builds the users world: the pairs of forty simulated people.

    python scripts/build_users.py        # some ten minutes on one CPU core

It needs the shapes world. It is resumable: the same command continues after a kill. Images go to --work, the tables to
--output. What is measured goes to the screen and to measured.json in --work.
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

from shapes_builder.building import note  # noqa: E402
from users_builder.make_pairs import (  # noqa: E402
    label,
    make_pictures,
    most_different,
    plan_jobs,
    plan_meetings,
    write_table,
)
from users_builder.measure_world import measure_pairs  # noqa: E402

from diffpo.worlds.assets import asset_path  # noqa: E402
from diffpo.worlds.users.people import people  # noqa: E402


def main() -> None:
    """Make the pictures, let the people choose, write the tables."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(asset_path("shapes/pipeline"), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    jobs = plan_jobs(args.prompts, args.seed)
    jpegs = make_pictures(pipeline, jobs, args.work / "images")
    rows = label(plan_meetings(most_different(jobs, jpegs), args.each, args.seed), jpegs, args.seed)
    for split, seen in (("train", True), ("test", False)):
        some = [row for row in rows if people()[row["user_id"]].seen == seen]
        write_table(some, args.output / "pairs" / f"{split}.parquet")
        note(args.work, split, measure_pairs(some))


def parse_arguments() -> argparse.Namespace:
    """The command line; the defaults made the shipped assets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=REPO / "runs" / "build_users", help="images and measurements")
    parser.add_argument("--output", type=Path, default=REPO / "assets" / "users")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=320, help="of the shapes world's train split")
    parser.add_argument("--each", type=int, default=128, help="pairs per person")
    return parser.parse_args()


if __name__ == "__main__":
    main()
