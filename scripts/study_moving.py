"""DenseDPO on the moving world: does it keep motion and match quality, at equal labelling effort and equal drift?

    python scripts/study_moving.py             # all of it: about an hour on one CPU core; resumable
    python scripts/study_moving.py --report    # table and picture in docs/ from what is there

1. Tables: a third of the guided pairs, and that third with labels flipped and shuffled. 2. Drift: each variant is
trained once, and the held-out error of the better side is followed; a variant gets as many updates as come
nearest to a rise by `DRIFT`. 3. Finals: three seeds with that many updates, judged on held-out prompts.

A run is a folder below --output with `result.json` as its last file; those that are there are not run again.
"""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from study_runs import Job, Scores, World, judge_base, mean, read_result, run_all

from diffpo.worlds.assets import asset_path

SEEDS = (0, 1, 2)
HELD_OUT = "moving:heldout"
UPDATES, EVERY = 60, 10
"""Updates for which the drift is followed, and how often it is looked at."""
PAIRS = 16
DRIFT = 0.08
"""Share by which the held-out error of the better side has risen where variants are compared."""
SHARE = 3
"""How many pairs can be labelled as wholes for what it takes to label the segments of one."""
GUIDED, THIRD, SHUFFLED = "guided", "third", "shuffled"
FLIPPED = {"flipped-20": 0.2, "flipped-40": 0.4}
HALVES = {"fidelity": ("color", "shape", "direction", "speed", "background"), "quality": ("present", "steady")}
"""What a caption asks for, and what every clip should have."""


@dataclass(frozen=True)
class Variant:
    """A way to learn from pairs of clips."""

    name: str
    config: str
    table: str
    """Its name among the tables of the study."""


VARIANTS = tuple(
    Variant(name, f"configs/moving-{config}.yaml", table)
    for name, config, table in (
        ("DPO, independent pairs", "dpo", "independent"),
        ("DPO, guided pairs", "dpo", GUIDED),
        ("DenseDPO, a third of the pairs", "densedpo", THIRD),
        ("DenseDPO, all pairs", "densedpo", GUIDED),
        ("DenseDPO, a third, 20 % flipped", "densedpo", "flipped-20"),
        ("DenseDPO, a third, 40 % flipped", "densedpo", "flipped-40"),
        ("DenseDPO, a third, shuffled", "densedpo", SHUFFLED),
    )
)


def measure(folder: Path) -> Scores:
    """Judge clips of the moving world: the verifier's score, its two halves, and motion."""
    from diffpo.media.folder import open_clip, read_media
    from diffpo.worlds.moving.scenes import parse_caption
    from diffpo.worlds.moving.verify import amplitude, judge, largest, see

    scores: Scores = {name: [] for name in ("verifier", *HALVES, "motion")}
    for item in sorted(read_media(folder), key=lambda item: (item.prompt_id, item.seed)):
        seen = see(open_clip(folder, item).frames)
        verdict = judge(seen, parse_caption(item.prompt))
        scores["verifier"].append(verdict.score)
        for name, attributes in HALVES.items():
            scores[name].append(mean([verdict.attributes[attribute] for attribute in attributes]))
        scores["motion"].append(amplitude([largest(frame) for frame in seen]))
    return scores


WORLD = World(
    "moving:base",
    {
        "steps": 12,
        "guidance": 1.0,
        "batch": 32,
        "noise": "consecutive",
        "seeds": (0, 1, 2),
        "frames": 9,
        "fps": 8.0,
        "size": (32, 32),
    },
    measure,
    "verifier",
)


def job(output: Path, variant: Variant, folder: str, updates: int, seed: int, prompts: str) -> Job:
    """One training of a variant."""
    tables = output / "tables"
    overrides = (
        f"data.path={tables / variant.table}",
        f"data.validation_path={tables / GUIDED}",
        "train.warmup_steps=10",  # at each length, and no decay: a shorter run is the beginning of a longer one
        "train.schedule=constant_with_warmup",
    )
    return Job(
        str(output / folder / variant.name / f"seed{seed}"),
        variant.config,
        overrides,
        updates,
        seed,
        prompts,
        PAIRS,
        EVERY,
    )


def drifts(output: Path) -> list[Job]:
    """One long run of each variant, whose held-out errors are followed."""
    return [job(output, variant, "drift", UPDATES, SEEDS[0], "") for variant in VARIANTS]


def updates(output: Path, variant: Variant) -> int:
    """After how many updates the error of the better side has risen by about `DRIFT`."""
    curve = read_result(job(output, variant, "drift", UPDATES, SEEDS[0], ""))["curve"]
    return int(min(curve, key=lambda step: abs(drift(curve[step]) - DRIFT)))


def drift(errors: dict[str, float]) -> float:
    """How much the error of the better side has risen, as a share of the reference's."""
    return errors["error/chosen"] / errors["error/reference_chosen"] - 1


def finals(output: Path, variant: Variant) -> list[Job]:
    """Three seeds at equal drift."""
    return [job(output, variant, "finals", updates(output, variant), seed, HELD_OUT) for seed in SEEDS]


def finished(output: Path, variant: Variant) -> list[Job]:
    """The finals that are there."""
    known = job(output, variant, "drift", UPDATES, SEEDS[0], "").done
    return [final for final in finals(output, variant) if final.done] if known else []


def make_tables(output: Path) -> None:
    """Take over the world's tables; write a third of the guided one, and that third with wrong labels."""
    from pyarrow import Table, parquet

    tables, world = output / "tables", asset_path("moving")
    for name in ("independent", GUIDED):
        shutil.copytree(world / name, tables / name, dirs_exist_ok=True)
    rows = parquet.read_table(tables / GUIDED / "train.parquet").to_pylist()
    rows = rows[: len(rows) // SHARE]
    for name, labels in wrong_labels([row["segments"] for row in rows]).items():
        (tables / name).mkdir(exist_ok=True)
        changed = [row | {"segments": own} for row, own in zip(rows, labels, strict=True)]
        parquet.write_table(Table.from_pylist(changed), tables / name / "train.parquet")


def wrong_labels(labels: list[list[int]]) -> dict[str, list[list[int]]]:
    """Labels of segments as they are, flipped with a probability, and given to other pairs."""
    generator = torch.Generator().manual_seed(0)
    made = {THIRD: labels}
    for name, probability in FLIPPED.items():
        flips = torch.rand(len(labels), len(labels[0]), generator=generator) < probability
        made[name] = (torch.tensor(labels) * torch.where(flips, -1, 1)).tolist()
    return made | {SHUFFLED: [labels[i] for i in torch.randperm(len(labels), generator=generator).tolist()]}


def main() -> None:
    """Run the stages, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/study-moving"))
    parser.add_argument("--processes", type=int, default=max(1, os.cpu_count() or 1), help="runs at a time")
    parser.add_argument("--report", action="store_true", help="run nothing, write the report")
    args = parser.parse_args()
    if not args.report:
        os.environ["OMP_NUM_THREADS"] = "1"
        make_tables(args.output)
        judge_base(WORLD, args.output, HELD_OUT)
        run_all(WORLD, drifts(args.output), args.processes, "drift")
        run_all(WORLD, [final for v in VARIANTS for final in finals(args.output, v)], args.processes, "final")
    from study_moving_report import write_study

    write_study(args.output)


if __name__ == "__main__":
    main()
