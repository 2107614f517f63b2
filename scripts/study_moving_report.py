"""The moving world's table and picture: from `result.json` files to docs/video.md and docs/moving-study.png.

Only what stands between the two marks of docs/video.md is written; the words around it are a person's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import study_moving as study
from study_runs import judge_base, mean, percent, pooled, read_result, share, signed, write_between

from diffpo.compare.stats import Estimate, WinRate, mean_difference, win_rate

REPO = Path(__file__).resolve().parents[1]
PAGE, PLOT = REPO / "docs" / "video.md", REPO / "docs" / "moving-study.png"
MARKS = "<!-- written by scripts/study_moving.py -->", "<!-- end of what is written -->"


@dataclass(frozen=True)
class Outcome:
    """What the seeds of a variant came to."""

    variant: study.Variant
    seeds: int
    updates: int
    drift: float
    win: WinRate
    differences: dict[str, Estimate]
    """Judge -> tuned minus base; `open` is motion where the caption names no speed."""


def outcomes(output: Path) -> list[Outcome]:
    """Read and compare the finals that are there."""
    base = judge_base(study.WORLD, output, study.HELD_OUT)
    prompts = [i // len(study.WORLD.sampling["seeds"]) for i in range(len(base["verifier"]))]
    free = _speed_is_open(prompts)
    found = []
    for variant in study.VARIANTS:
        results = [read_result(job) for job in study.finished(output, variant)]
        if not results:
            continue
        scores = {name: pooled([result["scores"][name] for result in results]) for name in base}
        before = {name: values * len(results) for name, values in base.items()}
        which = prompts * len(results)
        differences = {name: mean_difference(scores[name], before[name], which) for name in base}
        kept = [i for i, prompt in enumerate(which) if prompt in free]
        differences["open"] = mean_difference(
            *([x["motion"][i] for i in kept] for x in (scores, before)), [which[i] for i in kept]
        )
        found.append(
            Outcome(
                variant,
                len(results),
                study.updates(output, variant),
                100 * mean([study.drift(result["error"]) for result in results]),
                win_rate(scores["verifier"], before["verifier"], which),
                differences,
            )
        )
    return found


def _speed_is_open(prompts: list[int]) -> set[int]:
    """The prompts that name no speed."""
    from diffpo.media.prompts import load_prompts
    from diffpo.worlds.moving.scenes import parse_caption

    captions = load_prompts(study.HELD_OUT).prompts
    assert len(captions) == max(prompts) + 1, "one group of scores for each prompt"
    return {i for i, caption in enumerate(captions) if not parse_caption(caption).speed}


def table(found: list[Outcome]) -> str:
    """One row per variant."""
    lines = [
        "| variant | seeds | updates | error of the better side | win rate against base | verifier | fidelity "
        "| quality | motion | motion, speed left open |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in found:
        cells = " | ".join(signed(each.differences[n]) for n in ("verifier", "fidelity", "quality", "motion", "open"))
        lines.append(
            f"| {each.variant.name} | {each.seeds} | {each.updates} | {percent(each.drift)} "
            f"| {share(each.win)} | {cells} |"
        )
    return "\n".join(lines)


def base_line(output: Path) -> str:
    """The base's own means."""
    base = judge_base(study.WORLD, output, study.HELD_OUT)
    return "The base: " + ", ".join(f"{name} {mean(values):.3f}" for name, values in base.items()) + "."


def plot(found: list[Outcome], path: Path) -> None:
    """Quality, fidelity and motion against the base, with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = {"quality": "quality", "fidelity": "prompt fidelity", "motion": "motion, pixels per frame"}
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 0.38 * len(found) + 1.3), sharey=True, layout="constrained")
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        values = [each.differences[name] for each in found]
        spread = [[v.estimate - v.ci_low for v in values], [v.ci_high - v.estimate for v in values]]
        places = [-i for i in range(len(found))]
        axis.errorbar(
            [v.estimate for v in values], places, xerr=spread, fmt="o", color="#2463eb", capsize=2, markersize=4
        )
        axis.axvline(0, color="gray", linestyle=":", linewidth=1)
        axis.set_xlabel(f"{title}:\ntuned minus base")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(places, [each.variant.name for each in found])
    figure.savefig(path, dpi=130)


def write_study(output: Path) -> None:
    """Write table and picture into docs/."""
    found = outcomes(output)
    plot(found, PLOT)
    write_between(PAGE, MARKS, f"{table(found)}\n\n{base_line(output)}\n")
    print(f"wrote {PLOT}")
