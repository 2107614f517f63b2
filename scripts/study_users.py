"""The study of the users world: does a model that is told its users please people whom it has never met?

    python scripts/study_users.py trials          # settings to choose among, on seen people and validation prompts
    python scripts/study_users.py finals          # three seeds of PPD and of plain DPO, on held-out prompts
    python scripts/study_users.py growth          # of the first seed: 1, 2, 4 and 8 support pairs
    python scripts/study_users.py blend           # of the first seed: from one person to their opposite
    python scripts/study_users.py report          # docs/users.json, docs/users.png, and the tables of docs/users.md

Every step continues after a kill, and uses what an earlier one made. Plain DPO learns from the same pairs of the same
people, which it cannot tell apart; four settings of it were tried. One training at a time, on one thread, unless told
otherwise.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from diffpo.compat import ensure_torchvision  # noqa: E402

ensure_torchvision()

import torch  # noqa: E402

from diffpo.captioners.base import Case  # noqa: E402
from diffpo.captioners.judges import WorldJudge  # noqa: E402
from diffpo.commands.demo_users import CONFIG, EMBEDDER, PEOPLE  # noqa: E402
from diffpo.commands.personal import opposites  # noqa: E402
from diffpo.commands.users import make_embedding, open_embedding  # noqa: E402
from diffpo.compare.personal import GROUPS, Verdict, summarise  # noqa: E402
from diffpo.config.run import load_config  # noqa: E402
from diffpo.curate.users import embed_users  # noqa: E402
from diffpo.data import Pairs  # noqa: E402
from diffpo.disk.files import write_json  # noqa: E402
from diffpo.generation.generate import generate  # noqa: E402
from diffpo.generation.personal import make_images, plan_sittings  # noqa: E402
from diffpo.generation.settings import GenerateOptions  # noqa: E402
from diffpo.generation.users import blended  # noqa: E402
from diffpo.media.folder import open_clip, read_media  # noqa: E402
from diffpo.media.prompts import load_prompts  # noqa: E402
from diffpo.media.users import Users  # noqa: E402
from diffpo.training.train import train  # noqa: E402
from diffpo.worlds.shapes.verify import see  # noqa: E402
from diffpo.worlds.users.people import people, place  # noqa: E402

SEEDS = (0, 1, 2)
COUNTS = (1, 2, 4, 8)
"""Support pairs of a draw."""
SHARES = tuple(i / 6 for i in range(7))
DPO_TRIALS = {"5e-5": (50, 100), "2e-5": (100, 200)}
"""Plain DPO: learning rates, and after how many updates it is judged."""
DPO_CHOSEN = ("train.learning_rate=2e-5", "train.steps=200")
"""What the trials chose."""
SITTINGS = "sittings.json"
"""Whose images a folder holds."""


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


def train_ppd(output: Path, name: str, seed: int) -> Path:
    """Train PPD; a finished run is left as it is."""
    users = make_users(output)
    told = [f"data.path={users}/pairs", f"data.users={users}", f"train.seed={seed}", f"train.output={output / name}"]
    return train(load_config(CONFIG, told))


def train_dpo(output: Path, name: str, seed: int, overrides: tuple[str, ...]) -> Path:
    """Train plain DPO, all weights, on the same pairs with as many updates of as many pairs."""
    users, usual = make_users(output), load_config(CONFIG).train
    told = [f"data.path={users}/pairs", f"train.seed={seed}", f"train.output={output / name}", "data.name=pairs"]
    told += ["data.validation_split=null", f"train.steps={usual.steps}", f"train.batch={usual.batch}"]
    told += ["method={name: dpo, beta: 500}", "train.sample_every=0", "train.eval_every=0"]
    return train(load_config("configs/shapes-dpo.yaml", [*told, *overrides]))


@dataclass(frozen=True)
class Asked:
    """Who is asked what."""

    prompts: str
    each: int
    """Prompts of each person."""
    group: str
    users: Path
    rivals: Mapping[str, Path] = field(default_factory=dict)
    """Other models."""


def make(folder: Path, run: Path, asked: Asked) -> dict[str, Any]:
    """Make the images that people judge, as `diffpo personal` does; returns the win rates."""
    users = Users.open(asked.users)
    names = [name for name in users.draws if users.seen[name] == GROUPS[asked.group]]
    sittings = plan_sittings(users, names, load_prompts(asked.prompts).prompts, asked.each, 0)
    rivals = {name: options_of(str(rival)) for name, rival in asked.rivals.items()}
    made = make_images(options_of(str(run)), users, sittings, folder, rivals)
    images = [
        {"file": item.file, "user": sitting.user, "prompt": item.prompt}
        for item, sitting in zip(made["own"], sittings, strict=True)
    ]
    write_json(folder / SITTINGS, images)
    compared = [("own", "base"), *(("own", name) for name in rivals), ("own", "others"), ("others", "base")]
    found = rates([folder], [*compared, *((name, "base") for name in rivals)])
    print(f"{folder.name}: {found}", flush=True)
    return found


def rates(folders: Sequence[Path], compared: Sequence[tuple[str, str]]) -> dict[str, list[float]]:
    """Win rates with their intervals.

    What several seeds make for the same person and prompt counts as one verdict, the mean.
    """
    found = {}
    for first, second in compared:
        said = [verdict for folder in folders for verdict in judge(folder, first, second)]
        (rate,) = summarise(first, second, said).groups.values()
        found[f"{first}, {second}"] = [
            round(x, 4) for x in (rate.macro.estimate, rate.macro.ci_low, rate.macro.ci_high)
        ]
    return found


def judge(folder: Path, first: str, second: str) -> list[Verdict]:
    """What everybody says of two kinds of images."""
    kinds = [{item.file: (folder / kind, item) for item in read_media(folder / kind)} for kind in (first, second)]
    cases = []
    for said in json.loads((folder / SITTINGS).read_text()):
        images = [open_clip(*items[said["file"]]).first for items in kinds]
        cases.append(Case(said["user"], (), said["prompt"], *images, key=0))
    shares = WorldJudge().judge(cases)
    return [
        Verdict(case.user, people()[case.user].seen, case.prompt, share)
        for case, share in zip(cases, shares, strict=True)
    ]


def options_of(run: str | None, **more: Any) -> GenerateOptions:
    """How images are made, of whatever model."""
    sample = load_config(CONFIG).sample
    return GenerateOptions(
        model="shapes:base", tuned=run, steps=sample.steps, guidance=sample.guidance, batch=40, **more
    )


def trials(output: Path) -> None:
    """Settings of plain DPO, seed 10, judged by seen people on validation prompts beside PPD as it is configured."""
    rivals = {}
    for rate, counts in DPO_TRIALS.items():
        for count in counts:
            rivals[f"dpo-{rate}-{count}"] = kept = output / "trials" / f"dpo-{rate}-{count}"
            if not kept.exists():
                told = (f"train.learning_rate={rate}", f"train.steps={count}")
                shutil.copytree(train_dpo(output, f"trials/dpo-{rate}", 10, told) / "final", kept)
    run = train_ppd(output, "trials/ppd-0", 10)
    asked = Asked("users:validation", 2, "seen", make_users(output), rivals)
    write_json(output / "trials.json", make(output / "trials" / "judged", run, asked))


def finals(output: Path) -> None:
    """Three seeds: unseen people, and of the first seed those who are seen, on held-out prompts."""
    users = make_users(output)
    for seed in SEEDS:
        ppd, dpo = train_ppd(output, f"ppd-{seed}", seed), train_dpo(output, f"dpo-{seed}", seed, DPO_CHOSEN)
        make(output / f"unseen-{seed}", ppd, Asked("users:heldout", 16, "unseen", users, {"dpo": dpo}))
        if seed == SEEDS[0]:
            make(output / "seen", ppd, Asked("users:heldout", 3, "seen", users, {"dpo": dpo}))


def growth(output: Path) -> None:
    """Unseen people by fewer and by more support pairs."""
    run = train_ppd(output, "ppd-0", 0)
    for count in (count for count in COUNTS if count != PEOPLE.pairs):
        make(output / f"growth-{count}", run, Asked("users:heldout", 16, "unseen", make_users(output, count)))


def blend(output: Path) -> None:
    """What is measured in images for blends of the two unseen people who are least alike."""
    run, folder = train_ppd(output, "ppd-0", 0), make_users(output)
    users = Users.open(folder)
    first, second = opposites(users, [name for name in users.draws if not users.seen[name]])
    prompts, measured = load_prompts("users:heldout:32"), []
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


def report(output: Path) -> None:
    """Numbers, table and picture of docs/."""
    from study_users_report import write_study

    write_study(output)


if __name__ == "__main__":
    main()
