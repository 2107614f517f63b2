"""The study of the users world: does a model that is told its users please people whom it has never met?

    python scripts/study_users.py trials          # settings to choose among, on seen people and validation prompts
    python scripts/study_users.py finals          # three seeds of PPD and of plain DPO, on held-out prompts
    python scripts/study_users.py growth          # of the first seed: 1, 2, 4 and 8 support pairs
    python scripts/study_users.py blend           # of the first seed: from one person to their opposite
    python scripts/study_users.py report          # docs/users.png, and the numbers of docs/users.md on the screen

Every step continues after a kill, and uses what an earlier one made. Plain DPO learns from the same pairs of the same
people, which it cannot tell apart; it has as many trials. One training at a time, on one thread, unless told otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from diffpo.compat import ensure_torchvision  # noqa: E402

ensure_torchvision()

import torch  # noqa: E402

from diffpo.captioners.judges import WorldJudge  # noqa: E402
from diffpo.commands.demo_users import CONFIG, EMBEDDER, PEOPLE  # noqa: E402
from diffpo.commands.personal import Personal, opposites, run_personal  # noqa: E402
from diffpo.commands.users import make_embedding, open_embedding  # noqa: E402
from diffpo.config.run import load_config  # noqa: E402
from diffpo.curate.users import embed_users  # noqa: E402
from diffpo.data import Pairs  # noqa: E402
from diffpo.disk.files import write_json  # noqa: E402
from diffpo.generation.generate import generate  # noqa: E402
from diffpo.generation.settings import GenerateOptions  # noqa: E402
from diffpo.generation.users import blended  # noqa: E402
from diffpo.media.folder import open_clip, read_media  # noqa: E402
from diffpo.media.prompts import PromptSet, load_prompts  # noqa: E402
from diffpo.media.users import Users  # noqa: E402
from diffpo.training.train import train  # noqa: E402
from diffpo.worlds.shapes.verify import see  # noqa: E402
from diffpo.worlds.users.people import people, place  # noqa: E402

SEEDS = (0, 1, 2)
COUNTS = (1, 2, 4, 8)
"""Support pairs of a draw."""
SHARES = tuple(i / 8 for i in range(9))
PPD_TRIALS = (
    ("train.learning_rate=3.0e-4",),
    ("train.learning_rate=1.5e-4",),
    ("train.learning_rate=3.0e-4", "method.beta=1000"),
    ("train.learning_rate=3.0e-4", "model.tokens=4"),
)
DPO_TRIALS = (
    ("train.learning_rate=2.0e-5", "method.beta=500"),
    ("train.learning_rate=5.0e-5", "method.beta=500"),
    ("train.learning_rate=2.0e-5", "method.beta=2000"),
    ("train.learning_rate=5.0e-5", "method.beta=2000"),
)
PPD_CHOSEN: tuple[str, ...] = ()
"""What the trials chose, beside the configuration; the first of the best where several are even."""
DPO_CHOSEN = DPO_TRIALS[0]


def main() -> None:
    """Run the steps that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="+", choices=("trials", "finals", "growth", "blend", "report"))
    parser.add_argument("--output", type=Path, default=REPO / "runs" / "study_users")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    steps = {"trials": trials, "finals": finals, "growth": growth, "blend": blend, "report": report}
    for name in args.steps:
        steps[name](args.output)


def make_users(output: Path, pairs: int = PEOPLE.pairs) -> Path:
    """The folder of people with so many support pairs a draw; the directions are always those of four."""
    folder, usual = output / f"users-{pairs}", output / f"users-{PEOPLE.pairs}"
    if (folder / "users.json").exists():
        return folder
    source = Pairs(path="users:pairs", validation_split="test")
    if folder == usual:
        embed_users(source, make_embedding(EMBEDDER), folder, PEOPLE)
    else:
        options = replace(PEOPLE, pairs=pairs, directions=0)
        embed_users(source, open_embedding(make_users(output)), folder, options)
    return folder


def train_ppd(output: Path, name: str, seed: int, overrides: tuple[str, ...]) -> Path:
    """Train PPD; a finished run is left as it is."""
    users = make_users(output)
    told = [f"data.path={users}/pairs", f"data.users={users}", f"train.seed={seed}", f"train.output={output / name}"]
    return train(load_config(CONFIG, [*told, *overrides]))


def train_dpo(output: Path, name: str, seed: int, overrides: tuple[str, ...]) -> Path:
    """Train plain DPO, all weights, on the same pairs with as many updates of as many pairs."""
    users, usual = make_users(output), load_config(CONFIG).train
    told = [f"data.path={users}/pairs", f"train.seed={seed}", f"train.output={output / name}", "data.name=pairs"]
    told += ["data.validation_split=null", f"train.steps={usual.steps}", f"train.batch={usual.batch}"]
    told += ["method={name: dpo, beta: 500}", "train.sample_every=0", "train.eval_every=0"]
    return train(load_config("configs/shapes-dpo.yaml", [*told, *overrides]))


def judge(
    output: Path,
    name: str,
    run: Path,
    *,
    prompts: str,
    each: int,
    groups: tuple[str, ...],
    users: Path,
    dpo: Path | None,
) -> dict[str, Any]:
    """Let people judge a run; what was judged before is read."""
    folder = output / name
    if (folder / "personal.json").exists():
        return json.loads((folder / "personal.json").read_text())
    asked = Personal(
        options=options_of(str(run)),
        users=users,
        judge=WorldJudge(),
        prompts=load_prompts(prompts),
        each=each,
        most=30,
        groups=groups,
        rivals={} if dpo is None else {"dpo": options_of(str(dpo))},
    )
    return run_personal(asked, folder)


def options_of(run: str | None, **more: Any) -> GenerateOptions:
    """How images are made, of whatever model."""
    sample = load_config(CONFIG).sample
    return GenerateOptions(
        model="shapes:base", tuned=run, steps=sample.steps, guidance=sample.guidance, batch=40, **more
    )


def trials(output: Path) -> None:
    """Four settings of either method, seed 10, judged by seen people on validation prompts."""
    users = make_users(output)
    for number, overrides in enumerate(PPD_TRIALS):
        run = train_ppd(output, f"trials/ppd-{number}", 10, overrides)
        name = f"trials/ppd-{number}-judged"
        found = judge(output, name, run, prompts="users:validation", each=8, groups=("seen",), users=users, dpo=None)
        show(f"ppd {' '.join(overrides)}", found)
    told = train_ppd(output, "trials/ppd-0", 10, PPD_TRIALS[0])
    for number, overrides in enumerate(DPO_TRIALS):
        run = train_dpo(output, f"trials/dpo-{number}", 10, overrides)
        name = f"trials/dpo-{number}-judged"
        found = judge(output, name, told, prompts="users:validation", each=8, groups=("seen",), users=users, dpo=run)
        show(f"dpo {' '.join(overrides)}", found)


def finals(output: Path) -> None:
    """Three seeds: unseen and seen people, held-out prompts."""
    for seed in SEEDS:
        ppd = train_ppd(output, f"ppd-{seed}", seed, PPD_CHOSEN)
        dpo = train_dpo(output, f"dpo-{seed}", seed, DPO_CHOSEN)
        for group, each in (("unseen", 24), ("seen", 8)):
            name = f"judged-{group}-{seed}"
            users = make_users(output)
            found = judge(output, name, ppd, prompts="users:heldout", each=each, groups=(group,), users=users, dpo=dpo)
            show(f"seed {seed}", found)


def growth(output: Path) -> None:
    """Unseen people by more and more support pairs."""
    run = train_ppd(output, "ppd-0", 0, PPD_CHOSEN)
    for count in COUNTS:
        users, name = make_users(output, count), f"growth-{count}"
        found = judge(output, name, run, prompts="users:heldout", each=16, groups=("unseen",), users=users, dpo=None)
        show(f"{count} pairs", found)


def blend(output: Path) -> None:
    """What is measured in images for blends of the two unseen people who are least alike."""
    run, folder = train_ppd(output, "ppd-0", 0, PPD_CHOSEN), make_users(output)
    users = Users.open(folder)
    first, second = opposites(users, [name for name in users.draws if not users.seen[name]])
    prompts, measured = PromptSet.of(load_prompts("users:heldout").prompts[:48]), []
    for share in SHARES:
        told = {name: part for name, part in ((first, 1 - share), (second, share)) if part}
        made = output / "blend" / f"{share:g}"
        generate(options_of(str(run), users=str(folder), blend=told), prompts, made)
        places = [place(see(open_clip(made, item).first)) for item in read_media(made)]
        axes = zip(*(where for where in places if where is not None), strict=True)
        measured.append([sum(values) / len(values) for values in axes])
    left = [blended(users, {first: 1 - s, second: s})[1] for s in SHARES]
    found = {"first": first, "second": second, "shares": SHARES, "places": measured, "strength": left}
    write_json(output / "blend.json", found)
    print(json.dumps(found, indent=1))


def report(output: Path) -> None:
    """The plot, and the numbers in lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for seed in SEEDS:
        for group in ("unseen", "seen"):
            if (output / f"judged-{group}-{seed}" / "personal.json").exists():
                show(f"seed {seed}", json.loads((output / f"judged-{group}-{seed}" / "personal.json").read_text()))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    rates = [json.loads((output / f"growth-{count}" / "personal.json").read_text()) for count in COUNTS]
    for number, label in ((0, "against the base"), (1, "against others' embeddings")):
        macro = [rate["results"][number]["groups"]["unseen"]["macro"] for rate in rates]
        means = [each["estimate"] for each in macro]
        spread = [[m - e["ci_low"] for m, e in zip(means, macro, strict=True)]]
        spread.append([e["ci_high"] - m for m, e in zip(means, macro, strict=True)])
        left.errorbar(range(len(COUNTS)), means, yerr=spread, marker="o", capsize=3, label=label)
    left.axhline(0.5, color="gray", linewidth=1, linestyle=":")
    left.set(xticks=range(len(COUNTS)), xticklabels=COUNTS, xlabel="support pairs", ylabel="win rate, unseen people")
    left.legend(frameon=False)
    found = json.loads((output / "blend.json").read_text())
    for axis, label in enumerate(("coverage", "saturation")):
        right.plot(found["shares"], [where[axis] for where in found["places"]], marker="o", label=label)
    for name, x in ((found["first"], 0), (found["second"], 1)):
        best = people()[name].favourite
        right.annotate(f"{name} likes {best[0]:+.1f}, {best[1]:+.1f}", (x, 0.02), ha="right" if x else "left",
                       xycoords=("data", "axes fraction"))  # fmt: skip
    right.set(xlabel=f"share of {found['second']}", ylabel="measured, in deviations")
    right.legend(frameon=False)
    figure.savefig(REPO / "docs" / "users.png", dpi=110)


def show(title: str, found: dict[str, Any]) -> None:
    """One line per comparison."""
    for result in found["results"]:
        for group, rate in result["groups"].items():
            macro = rate["macro"]
            print(
                f"{title}: {group}, {result['first']} against {result['second']} {macro['estimate']:.3f} "
                f"[{macro['ci_low']:.3f}, {macro['ci_high']:.3f}]",
                flush=True,
            )
    for group, known in found["users told from their states"].items():
        print(f"{title}: {group} told apart {known['top']}", flush=True)


if __name__ == "__main__":
    main()
