"""The users world's numbers: from judged folders to docs/users.json, the table of docs/users.md, and docs/users.png.

Only what stands between the two marks of docs/users.md is written; the words around it are a person's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import study_users as study
from study_runs import write_between

from diffpo.compare.personal import GROUPS, top_k
from diffpo.disk.files import write_json
from diffpo.media.users import Users
from diffpo.worlds.users.people import people

REPO = Path(__file__).resolve().parents[1]
PAGE, PLOT, NUMBERS = (REPO / "docs" / f"users{suffix}" for suffix in (".md", ".png", ".json"))
MARKS = "<!-- written by scripts/study_users.py -->", "<!-- end of what is written -->"
COMPARED = {
    "own, base": "told the user, against the base",
    "own, dpo": "told the user, against plain DPO on everybody's pairs",
    "own, others": "told the user, against told another user",
    "others, base": "told another user, against the base",
    "dpo, base": "plain DPO, against the base",
}
"""What is compared, and how the table says it."""


def collect(output: Path) -> dict[str, Any]:
    """All numbers of the study."""
    compared = [tuple(name.split(", ")) for name in COMPARED]
    folders = {str(seed): output / f"unseen-{seed}" for seed in study.SEEDS}
    unseen = {"all": study.rates([*folders.values()], compared)}
    unseen |= {seed: study.rates([folder], compared) for seed, folder in folders.items()}
    growth = {count: output / f"growth-{count}" for count in study.COUNTS}
    growth[study.PEOPLE.pairs] = folders[str(study.SEEDS[0])]
    return {
        "unseen": unseen,
        "seen": study.rates([output / "seen"], compared),
        "people told apart by their states": told_apart(study.make_users(output)),
        "growth": {str(count): study.rates([folder], compared[:3:2]) for count, folder in growth.items()},
        "blend": json.loads((output / "blend.json").read_text()),
        "trials, seen people, validation prompts": json.loads((output / "trials.json").read_text()),
    }


def told_apart(folder: Path) -> dict[str, Any]:
    """How often a draw's own person is among the first k, the people of each group among themselves."""
    users, found = Users.open(folder), {}
    for group, seen in GROUPS.items():
        rows = [(name, row) for name in users.draws if users.seen[name] == seen for row in users.draws_of(name)]
        found[group] = top_k([users.states(row).flatten().tolist() for _, row in rows], [name for name, _ in rows])
    return found


def table(found: dict[str, Any]) -> str:
    """A row per comparison: all seeds, and each."""
    seeds = ["all", *map(str, study.SEEDS)]
    columns = ["", "unseen, all seeds", *(f"seed {seed}" for seed in seeds[1:]), f"seen, seed {seeds[1]}"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, title in COMPARED.items():
        cells = [*(found["unseen"][seed][name] for seed in seeds), found["seen"][name]]
        lines.append(f"| {title} | " + " | ".join("{:.3f} [{:.3f}, {:.3f}]".format(*cell) for cell in cells) + " |")
    return "\n".join(lines)


def apart_table(found: dict[str, Any]) -> str:
    """A row per group: how often a draw's own person is among the first k."""
    known = found["people told apart by their states"]
    ks = list(known["seen"]["top"])
    lines = ["| own person among the first | " + " | ".join(ks) + " |", "|---|" + "---|" * len(ks)]
    for group, each in known.items():
        cells = [f"{each['top'][k]:.0%} (chance {each['chance'][k]:.0%})" if k in each["top"] else "" for k in ks]
        lines.append(f"| {group}, of {each['users']} people | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(found: dict[str, Any], path: Path) -> None:
    """Win rates, their growth with the support pairs, and what a blend measures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    names = {"own, base": "base", "own, dpo": "plain DPO", "own, others": "told others"}
    for offset, (group, color) in enumerate((("unseen", "#2463eb"), ("seen", "#d97706"))):
        places = [number + 0.2 * offset - 0.1 for number in range(len(names))]
        whole = found["unseen"]["all"] if group == "unseen" else found["seen"]
        _bars(left, places, [whole[name] for name in names], color=color, label=f"{group} people", linestyle="none")
    each = [[found["unseen"][str(seed)][name][0] for name in names] for seed in study.SEEDS]
    left.plot(
        [number - 0.1 for number in range(len(names))], [*zip(*each, strict=True)], "x", color="#2463eb", alpha=0.6
    )
    left.set(xticks=range(len(names)), xticklabels=names.values(), ylabel="win rate", xlabel="told the user, against")
    places = range(len(found["growth"]))
    for name, label in (("own, base", "against the base"), ("own, others", "against told others")):
        _bars(middle, places, [each[name] for each in found["growth"].values()], label=label)
    middle.set(xticks=places, xticklabels=list(found["growth"]), xlabel="support pairs of a person")
    middle.set(ylabel="win rate, unseen people")
    for axis in (left, middle):
        axis.axhline(0.5, color="gray", linewidth=1, linestyle=":")
        axis.set_ylim(0.35, 1)
        axis.legend(frameon=False, loc="lower right")
    strip = found["blend"]
    for axis, label in enumerate(("coverage", "saturation")):
        right.plot(strip["shares"], [where[axis] for where in strip["places"]], marker="o", label=label)
    for name, x in ((strip["first"], 0), (strip["second"], 1)):
        best = people()[name].favourite
        text = f"{name} likes\n{best[0]:+.1f}, {best[1]:+.1f}"
        right.annotate(text, (x, 0.02), ha="right" if x else "left", xycoords=("data", "axes fraction"))
    right.set(xlabel=f"share of {strip['second']} in the blend", ylabel="measured in images, in deviations")
    right.margins(y=0.25)
    right.legend(frameon=False)
    for axis in (left, middle, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def _bars(axis: Any, places: Sequence[float], rates: Sequence[Sequence[float]], **more: Any) -> None:
    """Draw estimates with their intervals."""
    means, low, high = zip(*rates, strict=True)
    spread = [[m - x for m, x in zip(means, low, strict=True)], [x - m for m, x in zip(means, high, strict=True)]]
    axis.errorbar(places, means, yerr=spread, marker="o", capsize=3, **more)


def write_study(output: Path) -> None:
    """Write numbers, table and picture into docs/."""
    found = collect(output)
    write_json(NUMBERS, found)
    plot(found, PLOT)
    write_between(PAGE, MARKS, f"{table(found)}\n\n{apart_table(found)}\n")
    print(f"wrote {NUMBERS} and {PLOT}")
