"""The study's tables and plot: from `result.json` files to docs/study.md and docs/study.png.

Only what stands between the two marks of docs/study.md is written; the words around it are a person's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import study_shapes as study
from study_plan import HELD_OUT, PAIRS, SEEDS, UPDATES, VARIANTS, Variant
from study_runs import judge_base, mean, percent, pooled, read_result, share, signed, write_between

from diffpo.compare.p_values import holm
from diffpo.compare.stats import Estimate, WinRate, mean_difference, win_rate

REPO = Path(__file__).resolve().parents[1]
PAGE, PLOT = REPO / "docs" / "study.md", REPO / "docs" / "study.png"
MARKS = "<!-- written by scripts/study_shapes.py -->", "<!-- end of what is written -->"
JUDGE, VERIFIER = "shapes-utility", "shapes"


@dataclass(frozen=True)
class Outcome:
    """What three seeds of a variant came to at one budget."""

    variant: Variant
    updates: int
    against_base: WinRate
    against_dpo: WinRate | None
    utility: Estimate
    verifier: Estimate
    drift: tuple[float, float]
    """Held-out error minus the reference's, chosen and rejected, in percent of the reference's."""
    seconds: float


def outcomes(output: Path, variants: Sequence[Variant], budget: str) -> list[Outcome]:
    """Read and compare the finals of one budget; a variant whose pair costs what DPO's does has one budget only."""
    base = judge_base(study.WORLD, output, HELD_OUT)
    found = []
    for variant in variants:
        jobs = [job for job in study.finals(output, variant) if Path(job.folder).name.startswith(budget)]
        results = [read_result(job) for job in jobs]
        if not results:
            continue
        scores = {name: pooled([result["scores"][name] for result in results]) for name in (JUDGE, VERIFIER)}
        prompts = list(range(len(base[JUDGE]))) * len(SEEDS)
        before = {name: values * len(SEEDS) for name, values in base.items()}
        dpo = None if variant.name == "dpo" else dpo_scores(output)
        found.append(
            Outcome(
                variant,
                jobs[0].updates,
                win_rate(scores[JUDGE], before[JUDGE], prompts),
                None if dpo is None else win_rate(scores[JUDGE], dpo, prompts),
                mean_difference(scores[JUDGE], before[JUDGE], prompts),
                mean_difference(scores[VERIFIER], before[VERIFIER], prompts),
                drift([result["error"] for result in results]),
                mean([result["seconds"] for result in results]),
            )
        )
    return found


def dpo_scores(output: Path) -> list[float]:
    """DPO's utilities at equal pairs, seed after seed."""
    jobs = [job for job in study.finals(output, VARIANTS["dpo"]) if Path(job.folder).name.startswith("pairs")]
    return pooled([read_result(job)["scores"][JUDGE] for job in jobs])


def drift(errors: Sequence[dict[str, float]]) -> tuple[float, float]:
    """Mean change of the policy's held-out errors in percent; NaN where there is no reference or side."""

    def change(side: str) -> float:
        pairs = [(e.get(f"error/{side}"), e.get(f"error/reference_{side}")) for e in errors]
        known = [100 * (new / old - 1) for new, old in pairs if new is not None and old is not None]
        return mean(known) if known else float("nan")

    return change("chosen"), change("rejected")


def table(found: Sequence[Outcome]) -> str:
    """One row per variant."""
    adjusted = holm([outcome.against_base.p_value for outcome in found])
    others = [outcome for outcome in found if outcome.against_dpo is not None]
    against_dpo = holm([outcome.against_dpo.p_value for outcome in others if outcome.against_dpo is not None])
    by_name = dict(zip((outcome.variant.name for outcome in others), against_dpo, strict=True))
    lines = [
        "| variant | updates | rows per pair | win rate against base | p | win rate against DPO | p | utility | "
        "verifier "
        "| error of chosen | of rejected | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for outcome, p in zip(found, adjusted, strict=True):
        dpo = "-" if outcome.against_dpo is None else share(outcome.against_dpo)
        p_dpo = probability(by_name[outcome.variant.name]) if outcome.variant.name in by_name else "-"
        lines.append(
            f"| {outcome.variant.name} | {outcome.updates} | {outcome.variant.rows:g} | {share(outcome.against_base)} "
            f"| {probability(p)} | {dpo} | {p_dpo} | {signed(outcome.utility)} | {signed(outcome.verifier)} "
            f"| {percent(outcome.drift[0])} | {percent(outcome.drift[1])} | {outcome.seconds:.0f} |"
        )
    return "\n".join(lines)


def trial_table(output: Path, variants: Sequence[Variant]) -> str:
    """Every trial with its mean utility; the one that was taken in bold."""
    lines = ["| variant | trials: mean utility on validation prompts |", "|---|---|"]
    for variant in variants:
        best, cells = study.best_trial(output, variant), []
        for job, choice in zip(study.trials(output, variant), variant.trials, strict=True):
            text = f"{', '.join(choice)}: {mean(read_result(job)['scores'][JUDGE]):.3f}"
            cells.append(f"**{text}**" if job == best else text)
        lines.append(f"| {variant.name} | {' · '.join(cells)} |")
    return "\n".join(lines)


def probability(p: float) -> str:
    """A p-value."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def plot(pairs: Sequence[Outcome], rows: Sequence[Outcome], path: Path) -> None:
    """Win rates with their intervals, equal pairs above equal rows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 0.38 * len(pairs) + 1.6), sharey=True, layout="constrained")
    places = {outcome.variant.name: -i for i, outcome in enumerate(pairs)}
    for axis, which, title in ((axes[0], "against_base", "against the base"), (axes[1], "against_dpo", "against DPO")):
        for found, shift, colour, label in (
            (pairs, 0.12, "#2463eb", "equal pairs"),
            (rows, -0.18, "#e0742a", "equal rows"),
        ):
            known = [(o, getattr(o, which)) for o in found if getattr(o, which) is not None]
            y = [places[o.variant.name] + shift for o, _ in known]
            x = [rate.estimate for _, rate in known]
            spread = [[r.estimate - r.ci_low for _, r in known], [r.ci_high - r.estimate for _, r in known]]
            axis.errorbar(x, y, xerr=spread, fmt="o", color=colour, label=label, capsize=2, markersize=4)
        axis.axvline(0.5, color="gray", linestyle=":", linewidth=1)
        axis.set_xlabel(f"win rate {title}")
        axis.set_xlim(0, 1)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(list(places.values()), list(places))
    axes[0].legend(frameon=False, loc="lower left")
    figure.savefig(path, dpi=130)


def write_study(output: Path, variants: Sequence[Variant]) -> None:
    """Write tables and plot into docs/."""
    pairs, rows = (outcomes(output, variants, budget) for budget in ("pairs", "rows"))
    plot(pairs, rows, PLOT)
    text = (
        f"### Equal pairs: {UPDATES} updates of {PAIRS} pairs\n\n{table(pairs)}\n\n"
        f"### Equal network rows: those of DPO's {UPDATES} updates\n\n{table(rows)}\n\n"
        f"### Trials\n\n{trial_table(output, variants)}\n"
    )
    write_between(PAGE, MARKS, text)
    print(f"wrote {PLOT}")
