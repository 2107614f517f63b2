"""Every method on the shapes world, from the same base and pairs: which of the papers' claims show here?

    python scripts/study_shapes.py                       # all of it: some two hours on two CPU cores; resumable
    python scripts/study_shapes.py --only dpo inpo       # a part
    python scripts/study_shapes.py --report              # table, plot and docs/study.md from what is there

1. Tables: soft labels from the embedded PickScore, captions from the verifier. 2. Trials: each variant's four choices
(study_plan.py), one seed, validation prompts; the best mean utility is taken. 3. Finals: three seeds on held-out
prompts, at equal pairs and, where a pair costs something else than DPO's, at equal rows
   through the network.

A run is a folder below --output with `result.json` as its last file; those that are there are not run again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import study_plan as plan
from study_plan import HELD_OUT, PAIRS, SEEDS, UPDATES, VALIDATION, VARIANTS, Variant
from study_runs import Job, Scores, World, judge_base, mean, read_result, run_all


def measure(folder: Path) -> Scores:
    """Judge pictures of the shapes world."""
    from diffpo.scorers import ShapesUtility, ShapesVerifier
    from diffpo.scorers.scores import score_folder

    rows = score_folder(folder, [ShapesUtility(), ShapesVerifier()]).rows
    return {name: [row.score for row in rows if row.scorer == name] for name in ("shapes-utility", "shapes")}


WORLD = World(
    "shapes:base", {"steps": 20, "guidance": 4.0, "batch": 50, "noise": "consecutive"}, measure, "shapes-utility"
)


def trials(output: Path, variant: Variant) -> list[Job]:
    """One job per choice."""
    return [
        Job(
            str(output / "trials" / variant.name / ",".join(choice)),
            variant.config,
            (*variant.options, *choice),
            UPDATES,
            0,
            VALIDATION,
            PAIRS,
            UPDATES,
        )
        for choice in variant.trials
    ]


def best_trial(output: Path, variant: Variant) -> Job:
    """Return the trial with the best mean utility on the validation prompts."""
    return max(trials(output, variant), key=lambda job: mean(read_result(job)["scores"]["shapes-utility"]))


def finals(output: Path, variant: Variant) -> list[Job]:
    """Three seeds at equal pairs; three more at DPO's network rows, if a pair costs something else."""
    chosen, budgets = best_trial(output, variant), {"pairs": UPDATES}
    rows = round(UPDATES * VARIANTS["dpo"].rows / variant.rows)
    budgets |= {"rows": rows} if rows != UPDATES else {}
    return [
        Job(
            str(output / "finals" / variant.name / chosen.choice / f"{budget}-seed{seed}"),
            variant.config,
            chosen.overrides,
            updates,
            seed,
            HELD_OUT,
            PAIRS,
            updates,
        )
        for budget, updates in budgets.items()
        for seed in SEEDS
    ]


def make_tables(variants: Sequence[Variant]) -> None:
    """Write the tables that some variants learn from; finished ones are kept."""
    from diffpo.config.run import load_config

    wanted = {load_config(variant.config).data.path for variant in variants}
    for path, command in plan.TABLES.items():
        if path in wanted:
            subprocess.run([sys.executable, "-m", "diffpo", *command.split(), "--out", path], check=True)


def main() -> None:
    """Run the stages, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/study"))
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="variants to run")
    parser.add_argument("--processes", type=int, default=max(1, os.cpu_count() or 1), help="runs at a time")
    parser.add_argument("--report", action="store_true", help="run nothing, write the report")
    args = parser.parse_args()
    variants = [VARIANTS[name] for name in args.only]
    if not args.report:
        os.environ["OMP_NUM_THREADS"] = "1"
        make_tables(variants)
        for prompts in (VALIDATION, HELD_OUT):
            judge_base(WORLD, args.output, prompts)
        run_all(WORLD, [job for v in variants for job in trials(args.output, v)], args.processes, "trial")
        run_all(WORLD, [job for v in variants for job in finals(args.output, v)], args.processes, "final")
    from study_report import write_study

    write_study(args.output, variants)


if __name__ == "__main__":
    main()
