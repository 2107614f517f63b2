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
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import study_plan as plan
from study_plan import HELD_OUT, PAIRS, SEEDS, UPDATES, VALIDATION, VARIANTS, Variant

SAMPLING = {"steps": 20, "guidance": 4.0, "batch": 50, "noise": "consecutive"}


@dataclass(frozen=True)
class Job:
    """One training, and its images judged on a set of prompts."""

    folder: str
    config: str
    overrides: tuple[str, ...]
    updates: int
    seed: int
    prompts: str

    @property
    def choice(self) -> str:
        """Its place among its variant's: for a trial, what was chosen."""
        return Path(self.folder).name

    @property
    def done(self) -> bool:
        """Whether its result is there."""
        return (Path(self.folder) / "result.json").exists()


def run(job: Job) -> Job:
    """Train, generate, score, and write `result.json`."""
    import warnings

    warnings.filterwarnings("ignore")
    from diffpo.compat import quiet_libraries
    from diffpo.config.run import load_config
    from diffpo.disk.files import write_json
    from diffpo.training.train import train

    quiet_libraries()
    folder = Path(job.folder)
    own = [f"train.output={folder / 'run'}", f"train.seed={job.seed}", f"train.steps={job.updates}"]
    own += [f"train.batch={PAIRS}", f"train.warmup_steps={max(1, job.updates // 10)}", "train.sample_every=0"]
    own += [f"train.eval_every={job.updates}", "train.checkpoint_every=1000"]
    config = load_config(job.config, [*job.overrides, *own])
    train(config)
    images = judge(str(folder / "run"), folder / "media", job.prompts)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    write_json(
        folder / "result.json",
        asdict(job)
        | {"scores": images, "seconds": sum(line["time/seconds"] for line in lines)}
        | {"error": {key.removeprefix("eval/"): value for key, value in lines[-1].items() if "eval/error" in key}},
    )
    return job


def judge(tuned: str | None, folder: Path, prompts: str) -> dict[str, list[float]]:
    """Generate one image per prompt and score it; returns the scores in the prompts' order."""
    from diffpo.generation.generate import generate
    from diffpo.generation.settings import GenerateOptions
    from diffpo.media.prompts import load_prompts
    from diffpo.scorers import ShapesUtility, ShapesVerifier
    from diffpo.scorers.scores import score_folder

    generate(GenerateOptions(model="shapes:base", tuned=tuned, **SAMPLING), load_prompts(prompts), folder, label="x")
    rows = score_folder(folder, [ShapesUtility(), ShapesVerifier()]).rows
    return {name: [row.score for row in rows if row.scorer == name] for name in ("shapes-utility", "shapes")}


def judge_base(output: Path, prompts: str) -> dict[str, list[float]]:
    """Do the same for the base, once."""
    file = output / "base" / f"{prompts.replace(':', '-')}.json"
    if not file.exists():
        scores = judge(None, output / "base" / prompts.replace(":", "-"), prompts)
        file.write_text(json.dumps(scores))
    return json.loads(file.read_text())


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
        )
        for budget, updates in budgets.items()
        for seed in SEEDS
    ]


def read_result(job: Job) -> dict[str, Any]:
    """Read a finished job's `result.json`."""
    return json.loads((Path(job.folder) / "result.json").read_text())


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


def run_all(jobs: Sequence[Job], processes: int, title: str) -> None:
    """Run what is not there yet, several at a time, each on one thread."""
    missing = [job for job in jobs if not job.done]
    print(f"{title}: {len(missing)} of {len(jobs)} to run", flush=True)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for i, done in enumerate(as_completed(pool.submit(run, job) for job in missing), 1):
            job = done.result()
            utility = mean(read_result(job)["scores"]["shapes-utility"])
            print(f"{title} {i}/{len(missing)}  utility {utility:.3f}  {job.folder}", flush=True)


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
            judge_base(args.output, prompts)
        run_all([job for v in variants for job in trials(args.output, v)], args.processes, "trial")
        run_all([job for v in variants for job in finals(args.output, v)], args.processes, "final")
    from study_report import write_study

    write_study(args.output, variants)


if __name__ == "__main__":
    main()
