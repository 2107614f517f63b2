"""DPO on the shapes world with the reference's errors kept on a few draws per pair, beside fresh draws.

    python scripts/study_draws.py --processes 1        # nine runs of one to two minutes each; resumable

128 pairs, so that the 40 updates of the study are ten epochs, and draws that come back come back often. The settings
are those that the study chose for DPO; images are judged as in the study (`study_shapes.py`). Prints a table.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from study_plan import HELD_OUT, PAIRS, SEEDS, UPDATES
from study_report import JUDGE, VERIFIER, pooled, share, signed
from study_shapes import Job, judge_base, read_result, run_all

from diffpo.compare.stats import mean_difference, win_rate

TABLE = 128
CHOSEN = ("method.guard=null", "method.beta=500", "train.learning_rate=5e-5", f"data.limit={TABLE}")
DRAWS = (None, 4, 1)


def jobs(output: Path, draws: int | None) -> list[Job]:
    """One job per seed."""
    name = "fresh" if draws is None else f"draws-{draws}"
    more = () if draws is None else (f"data.reference_draws={draws}",)
    return [
        Job(str(output / f"{name}-seed{seed}"), "configs/shapes-dpo.yaml", CHOSEN + more, UPDATES, seed, HELD_OUT)
        for seed in SEEDS
    ]


def row(output: Path, draws: int | None) -> str:
    """Three seeds of a prompt count as one observation."""
    base = {name: values * len(SEEDS) for name, values in judge_base(output, HELD_OUT).items()}
    prompts = list(range(len(base[JUDGE]) // len(SEEDS))) * len(SEEDS)

    def scores(which: int | None, name: str) -> list[float]:
        return pooled([read_result(job)["scores"][name] for job in jobs(output, which)])

    cells = [
        "fresh in every epoch" if draws is None else str(draws),
        share(win_rate(scores(draws, JUDGE), base[JUDGE], prompts)),
        "-" if draws is None else share(win_rate(scores(draws, JUDGE), scores(None, JUDGE), prompts)),
        *(signed(mean_difference(scores(draws, name), base[name], prompts)) for name in (JUDGE, VERIFIER)),
        f"{UPDATES * PAIRS if draws is None else draws * TABLE:,}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/study-draws"))
    parser.add_argument("--processes", type=int, default=max(1, os.cpu_count() or 1), help="runs at a time")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    judge_base(args.output, HELD_OUT)
    run_all([job for draws in DRAWS for job in jobs(args.output, draws)], args.processes, "run")
    print("| draws per pair | win rate against base | against fresh draws | utility | verifier | pairs asked about |")
    print("|---|---|---|---|---|---|")
    for draws in DRAWS:
        print(row(args.output, draws))


if __name__ == "__main__":
    main()
