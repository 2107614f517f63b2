"""Show that an exported run gives the same images in plain diffusers as `diffpo generate --batch 1`.

    python scripts/plain_check.py make DIR       in diffpo's environment: train, generate, leave everything in DIR
    python scripts/plain_check.py compare DIR    in one with torch, diffusers, transformers and peft alone

`make` trains a LoRA, a whole network and a user adapter for a few updates, on the shapes world if its assets are here,
else on a tiny random model. `compare` does not import diffpo: it does what a user does who has only the result, and
prints the largest difference of a pixel. It exits with 1 if that is above 1/255.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PLAN = "plan.json"
PROMPTS = ("thing 1", "a red circle", "a blue square")
SEEDS = (0, 1)
STEPS, GUIDANCE = 10, 5.0
LEARNING_RATES = {
    "shapes:base": {"lora": 1e-3, "full": 1e-4, "user": 1e-2},
    "tiny": {"lora": 3e-2, "full": 1e-2, "user": 3e-2},
}
"""Large, so that a few updates change the images by much more than rounding does."""
STATES = "users/states.safetensors"
LIMIT = 1
"""Difference allowed, in 255ths of a pixel's range."""


def make(folder: Path) -> None:
    """Train, generate, and write down what `compare` needs to know."""
    folder.mkdir(parents=True, exist_ok=True)
    model, data = shapes_world() or tiny_world(folder / "tiny")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    config = folder / "config.yaml"
    train = {"steps": 5, "batch": 4, "warmup_steps": 0}
    blocks = {"model": {"name": "lora", "path": model}, "method": {"name": "dpo"}, "data": data, "train": train}
    config.write_text(json.dumps(blocks))  # which is YAML too
    for tuning, rate in LEARNING_RATES.get(model, LEARNING_RATES["tiny"]).items():
        run = folder / tuning
        more = {"lora": ["model.rank=4", "model.alpha=8"], "user": told_users(folder, data)}.get(tuning, [])
        overrides = [f"model={tuning}", *more, f"train.learning_rate={rate}", f"train.output={run}"]
        diffpo("train", str(config), *overrides, "--fresh")
        if tuning != "user":
            generate(folder, model, tuning, "--tuned", str(run))
    generate(folder, model, "base")
    base = str(ROOT / "assets" / "shapes" / "pipeline") if model == "shapes:base" else model
    generate_for_a_user(folder, base)
    plan = {"base": base, "prompts": PROMPTS, "seeds": SEEDS, "steps": STEPS, "guidance": GUIDANCE}
    (folder / PLAN).write_text(json.dumps(plan, indent=2))
    print(f"wrote {folder}\nnext: PLAIN_PYTHON scripts/plain_check.py compare {folder}")


def generate(folder: Path, model: str, label: str, *tuned: str) -> None:
    """Make the images of one model, one at a time."""
    out = ("--prompts", str(folder / "prompts.txt"), "--out", str(folder / "media" / label), "--batch", "1", "--fresh")
    sampling = ("--steps", str(STEPS), "--guidance", str(GUIDANCE), "--seeds", ",".join(map(str, SEEDS)))
    diffpo("generate", model, *tuned, *out, *sampling, "--noise", "shared", "--device", "cpu", "--label", label)


def told_users(folder: Path, data: dict[str, Any]) -> list[str]:
    """Write random pairs of two users, and their states; returns what a run is told of them."""
    sys.path.insert(0, str(ROOT / "tests"))
    import tiny
    import tiny_users

    table = tiny.save_pairs(folder / "pairs of users", size=data["resolution"])
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    table.write_text("\n".join(json.dumps(row | {"user_id": f"user {i % 2}"}) for i, row in enumerate(rows)))
    if not (folder / "users").exists():
        tiny_users.save_users(folder / "users", {"user 0": [["x"]], "user 1": [["y"]]})
    source = [f"data.path={table}", "data.limit=null", "data.validation_split=null", f"data.users={folder / 'users'}"]
    return ["method=ppd", "data=pairs", *source]


def generate_for_a_user(folder: Path, base: str) -> None:
    """Make the images of the first user, one at a time, by the adapter in diffpo's own hands."""
    import torch
    from diffusers import DiffusionPipeline
    from PIL import Image
    from safetensors.torch import load_file

    from diffpo.models.user_files import load_user_adapter

    pipe = DiffusionPipeline.from_pretrained(base)
    adapter, states = load_user_adapter(pipe, folder / "user"), load_file(folder / STATES)["states"][:1]
    plan = {"prompts": PROMPTS, "seeds": SEEDS, "steps": STEPS, "guidance": GUIDANCE}
    (folder / "media" / "user").mkdir(parents=True, exist_ok=True)
    with adapter.speaking(states), torch.no_grad():
        for name, pixels in images(pipe, plan).items():
            Image.fromarray(pixels.astype("uint8")).save(folder / "media" / "user" / name)


def diffpo(*arguments: str) -> None:
    """Run a command of diffpo, in this process: the imports take longer than the work."""
    from diffpo.commands.app import app

    app(list(arguments), standalone_mode=False)


def shapes_world() -> tuple[str, dict[str, Any]] | None:
    """Return the embedded model and pairs, if they are here."""
    assets = ROOT / "assets" / "shapes"
    if not (assets / "pipeline" / "model_index.json").is_file():
        return None
    from diffpo.config.run import load_config

    data = load_config("configs/shapes-dpo.yaml").to_dict()["data"]
    return "shapes:base", data | {"limit": 64, "caption_dropout": 0.0}


def tiny_world(folder: Path) -> tuple[str, dict[str, Any]]:
    """Make a random model of the real classes, and random pairs."""
    sys.path.insert(0, str(ROOT / "tests"))
    import tiny

    model, pairs = tiny.save_pipeline("sd15", folder / "sd15"), tiny.save_pairs(folder / "pairs")
    return str(model), {"name": "pairs", "path": str(pairs), "resolution": 16}


def compare(folder: Path) -> int:
    """Make the same images with diffusers alone; returns the exit code."""
    import numpy as np
    from PIL import Image

    plan = json.loads((folder / PLAN).read_text())
    made = {label: images(pipe, plan, **told) for label, pipe, told in pipelines(plan["base"], folder)}
    assert not any(name == "diffpo" or name.startswith("diffpo.") for name in sys.modules), "plain means without diffpo"
    worst, still = 0, []
    for label, pictures in made.items():
        differences = []
        for name, picture in pictures.items():
            theirs = np.asarray(Image.open(folder / "media" / label / name).convert("RGB"), dtype=np.int16)
            differences.append(int(np.abs(theirs - picture).max()))
        moved = max(int(np.abs(picture - made["base"][name]).max()) for name, picture in pictures.items())
        print(
            f"{label:5} {len(differences)} images: largest difference {max(differences)}/255; from the base {moved}/255"
        )
        worst = max(worst, *differences)
        still += [label] * (label != "base" and moved <= 10 * LIMIT)
    if still:
        print(f"{', '.join(still)}: as good as the base's images, so this shows nothing", file=sys.stderr)
    verdict = "at most" if worst <= LIMIT else "ABOVE"
    print(f"largest difference {worst}/255, {verdict} the {LIMIT}/255 allowed")
    return int(worst > LIMIT or bool(still))


def pipelines(base: str, folder: Path) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Open base, LoRA, tuned network and user adapter as the model cards tell; with what each is told besides."""
    import torch
    from diffusers import AutoModel, DiffusionPipeline
    from safetensors.torch import load_file

    yield "base", DiffusionPipeline.from_pretrained(base), {}
    pipe = DiffusionPipeline.from_pretrained(base)
    pipe.load_lora_weights(folder / "lora" / "final")
    yield "lora", pipe, {}
    unet = AutoModel.from_pretrained(str(folder / "full" / "final"), subfolder="unet")  # a Path it does not take
    yield "full", DiffusionPipeline.from_pretrained(base, unet=unet), {}
    pipe, final, states = DiffusionPipeline.from_pretrained(base), folder / "user" / "final", folder / STATES
    pipe.load_ip_adapter(final, subfolder="", weight_name="user_adapter.safetensors", image_encoder_folder=None)
    user = load_file(states)["states"][:1]
    yield "user", pipe, {"ip_adapter_image_embeds": [torch.cat([torch.zeros_like(user), user])]}


def images(pipe: Any, plan: dict[str, Any], **told: Any) -> dict[str, Any]:
    """Make the plan's images, `[h w 3]` int16 by file name, each with a generator of its own."""
    import numpy as np
    import torch

    pipe.set_progress_bar_config(disable=True)
    made = {}
    for i, prompt in enumerate(plan["prompts"]):
        for seed in plan["seeds"]:
            generator = torch.Generator("cpu").manual_seed(seed)
            sampling = {"num_inference_steps": plan["steps"], "guidance_scale": plan["guidance"]}
            picture = pipe(prompt, generator=generator, **sampling, **told).images[0]
            made[f"{i:06d}-s{seed}.png"] = np.asarray(picture.convert("RGB"), dtype=np.int16)
    return made


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "compare"))
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    if given.what == "compare":
        return compare(given.folder)
    make(given.folder.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
