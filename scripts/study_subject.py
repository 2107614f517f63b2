"""The study of the subject world: RPO against DreamBooth's loss, from the same pictures at the same number of updates.

    python scripts/study_subject.py pairs                # the base's images, and their labels
    python scripts/study_subject.py runs --seeds 0       # train and judge with one seed, or with several
    python scripts/study_subject.py report               # docs/subject-study.json and .png, and a table on the screen

Every step continues after a kill, and uses what an earlier one made. Of each run both its last update and the one that
`train.select` chose are judged on held-out prompts, by the world's two exact measures.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from textwrap import wrap
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from diffpo.compat import ensure_torchvision  # noqa: E402

ensure_torchvision()

import torch  # noqa: E402
from study_runs import pooled  # noqa: E402

from diffpo.compare.stats import Estimate, mean_difference  # noqa: E402
from diffpo.config.run import load_config  # noqa: E402
from diffpo.disk.files import write_json  # noqa: E402
from diffpo.generation.generate import generate  # noqa: E402
from diffpo.generation.settings import GenerateOptions  # noqa: E402
from diffpo.media.prompts import load_prompts  # noqa: E402
from diffpo.scorers import SubjectFidelity, SubjectPrompt  # noqa: E402
from diffpo.scorers.scores import score_folder  # noqa: E402
from diffpo.training.train import train  # noqa: E402
from diffpo.worlds.assets import asset_path  # noqa: E402
from diffpo.worlds.subject.pictures import CAPTION  # noqa: E402
from diffpo.worlds.subject.scenes import CLASS, WORD  # noqa: E402

CONFIG = "configs/subject-rpo.yaml"
HARMONIC = "lambda-harmonic,image=subject,text=subject-prompt,image_range=[0,1],text_range=[0,1]"
TABLES = {
    "prompt": ("--scorer", "subject-prompt"),
    "harmonic": ("--scorer", HARMONIC),
    "class": ("--scorer", "shapes", "--drawn-as", "red square"),
}
"""What labels the pairs: how well an image shows its prompt, as in the released code, or that and the subject (lambda
1/2); of `class` the images of the base are drawn for prompts without the rare word."""
ARMS = {
    "sft": ("prompt", ("method=sft", "method.sft_side=chosen")),
    "rpo": ("prompt", ()),
    "rpo, harmonic labels": ("harmonic", ("method.beta=5",)),
    "rpo, class images": ("class", ()),
}
"""The table of an arm, and what it has other than the configuration; chosen by one seed and validation prompts."""
SEEDS = (0, 1, 2)
WHICH = ("last", "selected")
IMAGES = (0, 1)
"""Seeds of the images of a held-out prompt."""
MEASURES = {"subject": SubjectFidelity(), "subject-prompt": SubjectPrompt()}
REPORT = REPO / "docs" / "subject-study.json"


def main() -> None:
    """Run the steps that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="+", choices=("pairs", "runs", "report"))
    parser.add_argument("--output", type=Path, default=REPO / "runs" / "study_subject")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if "pairs" in args.steps:
        make_pairs(args.output)
    if "runs" in args.steps:
        for seed, arm in product(args.seeds, args.arms):
            make_run(args.output, arm, seed)
    if "report" in args.steps:
        report(args.output)


def make_pairs(output: Path) -> None:
    """Let the base draw, label its images by how well they show their prompts, and judge the base itself."""
    base = [sys.executable, "-m", "diffpo", "data", "subject", "shapes:base", str(asset_path("subject/references"))]
    base += ["--class", CLASS, "--token", WORD, "--caption", CAPTION.replace(f"{WORD} {CLASS}", "{}")]
    base += ["--prompts", str(asset_path("subject/prompts/train.txt")), "--seeds", "0"]
    for name, options in TABLES.items():
        told = [*options, "--sampling", "steps=20,guidance=4", "--out", str(output / f"pairs-{name}")]
        subprocess.run([*base, *told], check=True)
    judge(output / "base", None)


def make_run(output: Path, arm: str, seed: int) -> None:
    """Train, and judge the last update and the selected one; what is there is left as it is."""
    folder = run_folder(output, arm, seed)
    if (folder / "result.json").exists():
        return
    table, overrides = ARMS[arm]
    told = [f"data.path={output / f'pairs-{table}'}", f"train.seed={seed}", f"train.output={folder / 'run'}"]
    run = train(load_config(CONFIG, [*overrides, *told]))
    looks = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    looks = [{k: line[k] for k in ("step", "select/score", "select/step")} for line in looks if "select/score" in line]
    scores = {"last": judge(folder / "last", last_unet(run, folder / "unet", looks[-1]["step"]))}
    chosen = looks[-1]["select/step"] < looks[-1]["step"]
    scores["selected"] = judge(folder / "selected", run / "final" / "unet") if chosen else scores["last"]
    write_json(folder / "result.json", {"looks": looks, "scores": scores})


def run_folder(output: Path, arm: str, seed: int) -> Path:
    """Where a run and its images are."""
    return output / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"


def last_unet(run: Path, folder: Path, step: int) -> Path:
    """Put the weights of a run's last checkpoint in the place of those that it exported."""
    shutil.copytree(run / "final" / "unet", folder, dirs_exist_ok=True)
    weights = run / "checkpoints" / f"step-{step:06d}" / "weights.safetensors"
    shutil.copy(weights, folder / "diffusion_pytorch_model.safetensors")
    return folder


def judge(folder: Path, unet: Path | None) -> dict[str, list[float]]:
    """Both measures of a model's images of all held-out prompts, prompt by prompt and seed by seed."""
    sample = load_config(CONFIG).sample
    options = GenerateOptions(
        model="shapes:base",
        denoiser=None if unet is None else str(unet),
        seeds=IMAGES,
        steps=sample.steps,
        guidance=sample.guidance,
        batch=28,
    )
    generate(options, load_prompts("subject:heldout"), folder, label="model")
    rows = score_folder(folder, list(MEASURES.values())).rows
    found = {name: {(row.prompt, row.seed): row.score for row in rows if row.scorer == name} for name in MEASURES}
    return {name: [scores[key] for key in sorted(scores)] for name, scores in found.items()}


def report(output: Path) -> None:
    """Means, differences and what selection chose, with intervals over prompts; the picture."""
    results = {arm: read_results(output, arm) for arm in ARMS}
    ids = [prompt for prompt in sorted(load_prompts("subject:heldout").prompts) for _ in IMAGES]
    base = with_harmonic(judge(output / "base", None))
    found: dict[str, Any] = {"prompts": len(ids) // len(IMAGES), "images per prompt": len(IMAGES), "seeds": len(SEEDS)}
    found |= {"base": {k: of(v, [0.0] * len(v), ids) for k, v in base.items()}, "arms": {}, "differences": {}}
    for (arm, some), which in product(results.items(), WHICH):
        told = ids * len(some)
        scores = {k: [with_harmonic(one["scores"][which])[k] for one in some] for k in base}
        means = {k: of(pooled(v), [0.0] * len(told), told) for k, v in scores.items()}
        each = {k: [round(sum(one) / len(one), 4) for one in v] for k, v in scores.items()}
        found["arms"][f"{arm}, {which}"] = {"means": means, "each seed": each}
        rivals = [(arm, "last")] if which == "selected" else []
        rivals += [("sft", rival) for rival in WHICH if arm != "sft"]
        rivals += [("rpo", which)] if arm not in ("sft", "rpo") else []
        for rival, theirs in rivals:
            other = [with_harmonic(one["scores"][theirs]) for one in results[rival]]
            pairs = {k: of(pooled(v), pooled([one[k] for one in other]), told) for k, v in scores.items()}
            found["differences"][f"{arm}, {which} - {rival}, {theirs}"] = pairs
    found["looks"] = {arm: [one["looks"] for one in some] for arm, some in results.items()}
    write_json(REPORT, found)
    lines = {
        "base": found["base"],
        **{name: arm["means"] for name, arm in found["arms"].items()},
        **found["differences"],
    }
    for name, values in lines.items():
        said = (f"{k} {v['estimate']:+.3f} [{v['low']:+.3f}, {v['high']:+.3f}]" for k, v in values.items())
        print(f"{name}: {'  '.join(said)}")
    print({arm: [looks[-1]["select/step"] for looks in some] for arm, some in found["looks"].items()})
    draw(output, found)


def read_results(output: Path, arm: str) -> list[dict[str, Any]]:
    """What is known of each seed of an arm."""
    return [json.loads((run_folder(output, arm, seed) / "result.json").read_text()) for seed in SEEDS]


def with_harmonic(scores: dict[str, list[float]]) -> dict[str, list[float]]:
    """Add what the reward says: the harmonic mean of both, image by image."""
    both = zip(scores["subject"], scores["subject-prompt"], strict=True)
    return scores | {"harmonic": [2 * s * t / (s + t) if s + t else 0.0 for s, t in both]}


def of(a: list[float], b: list[float], prompts: list[str]) -> dict[str, float]:
    """The mean difference with its interval over prompts, rounded."""
    found: Estimate = mean_difference(a, b, prompts)
    return {"estimate": round(found.estimate, 4), "low": round(found.ci_low, 4), "high": round(found.ci_high, 4)}


def draw(output: Path, found: dict[str, Any]) -> None:
    """Both fidelities of every run, beside images of the first seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained", width_ratios=(1, 1.4))
    for (arm, which), color in zip(product(ARMS, WHICH), ("C3", "C3", "C0", "C0", "C2", "C2", "C4", "C4"), strict=True):
        each, fill = found["arms"][f"{arm}, {which}"]["each seed"], color if which == "last" else "none"
        points = each["subject"], each["subject-prompt"]
        axes[0].scatter(*points, edgecolors=color, facecolors=fill, label=f"{arm}, {which}")
    axes[0].scatter(*([found["base"][name]["estimate"]] for name in MEASURES), marker="*", color="black", label="base")
    axes[0].set(xlabel="subject fidelity", ylabel="prompt fidelity")
    axes[0].legend(fontsize=7, frameon=False)
    prompts = list(load_prompts("subject:heldout").prompts)
    rows = {"base": output / "base", **{arm: run_folder(output, arm, SEEDS[0]) / "last" for arm in ARMS}}
    sheet = Image.new("RGB", (6 * 66, len(rows) * 66), "white")
    for row, folder in enumerate(rows.values()):
        for column in range(6):
            file = min(folder.glob(f"{column * 9:06d}-s*"))
            sheet.paste(Image.open(file), (column * 66, row * 66))
    axes[1].imshow(sheet, interpolation="nearest")
    said = [wrap(prompts[i * 9].removesuffix(" background"), 12) for i in range(6)]
    places = [33 + 66 * i for i in range(6)]
    axes[1].set(yticks=places[: len(rows)], yticklabels=["\n".join(wrap(name, 9)) for name in rows])
    axes[1].set_xticks(places, ["\n".join(lines) for lines in said], fontsize=6)
    figure.savefig(REPORT.with_suffix(".png"), dpi=80)


if __name__ == "__main__":
    main()
