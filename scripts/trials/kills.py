"""Kills at random moments: the same command, run again, ends with what an unkilled run ends with."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

from trials import worlds
from trials.forks import Trial, command, fork

VOLATILE = {"report.html", "grid.png", "README.md", "run.json", "config.yaml", "evaluation.yaml", "settings.json"}
"""Files that say when or where, or that are drawn of the others."""
COMMANDS = ("train", "train full", "train average", "generate", "score", "data build", "data score", "evaluate")


def trial(rng: random.Random, folder: Path, world: Path) -> Trial:
    """One or two kills of one command."""
    name = rng.choice(COMMANDS)
    whole = world / "kills" / name.replace(" ", "-")
    if not (whole / "seconds").exists():
        shutil.rmtree(whole, ignore_errors=True)
        (whole / "out").parent.mkdir(parents=True, exist_ok=True)
        arguments = _arguments(name, whole, world)
        start = time.monotonic()
        ended = fork(command(arguments), whole / "said.txt", 600)
        assert ended.code == 0, ended.text
        (whole / "seconds").write_text(str(time.monotonic() - start))
    longest = float((whole / "seconds").read_text())
    kills = tuple(rng.uniform(0.02, 1.0) * longest for _ in range(rng.randint(1, 2)))
    arguments = _arguments(name, folder, world)
    what = f"{name} killed after {', '.join(f'{after:.2f}' for after in kills)} of {longest:.2f} s"
    return Trial(what, [arguments], lambda: _differences(whole / "out", folder / "out"), seconds=300, kills=kills)


def _arguments(name: str, folder: Path, world: Path) -> list[str]:
    """The command, writing to `folder / out`."""
    out = folder / "out"
    if name.startswith("train"):
        tree = worlds.config(world, out)
        tree["train"] |= {"steps": 6, "checkpoint_every": 2, "ema": 0.9 * (name == "train average")}
        tree["data"]["cache_dir"] = str(folder / "cache")
        tree["train"] |= {"sample_every": 3}
        tree["sample"] |= {"prompts": worlds.prompts(1), "size": [16, 16]}
        if name == "train full":
            tree["model"] = {"name": "full", "path": tree["model"]["path"]}
        return ["train", str(worlds.write(folder / "x.yaml", tree))]
    if name == "evaluate":
        return ["evaluate", str(worlds.write(folder / "x.yaml", worlds.evaluation(world, out)))]
    if name == "generate":
        (folder / "prompts.txt").write_text("\n".join(worlds.prompts(12)))
        options = "--steps 2 --size 64x64 --batch 2 --guidance 1"
        return f"generate {worlds.pipeline(world)} --prompts {folder}/prompts.txt --out {out} {options}".split()
    if name == "data score":
        return f"data score shapes:pairs --limit 60 --scorer shapes --out {out}".split()
    _media(out if name == "score" else folder / "media", 24)
    if name == "score":
        return f"score {out} --scorer shapes --scorer shapes-utility".split()
    return f"data build {folder}/media --scorer shapes --ties keep --out {out}".split()


def _media(folder: Path, number: int) -> None:
    """A media folder as `generate` writes it, with two images per prompt."""
    if folder.exists():
        return
    prompts, lines = worlds.prompts(number // 2), []
    for i in range(number):
        name = f"{i // 2:06d}-s{i % 2}.png"
        worlds.numbered(folder / name, i)
        seen = {"file": name, "prompt": prompts[i // 2], "prompt_id": i // 2, "seed": i % 2, "model": "base"}
        lines.append(json.dumps(seen))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")


def _differences(whole: Path, killed: Path) -> list[str]:
    """Compare two folders: names, tensors, pictures, rows."""
    a, b = _contents(whole), _contents(killed)
    differing = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
    print("differing:", ", ".join(differing) or "nothing")
    return ["differs"] if differing else []


def _contents(folder: Path) -> dict[str, Any]:
    held: dict[str, Any] = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if not file.is_file() or file.name in VOLATILE or any(part.startswith(".") for part in file.parts[-3:]):
            continue
        if file.name == "metrics.jsonl":
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            held[name] = [{key: value for key, value in line.items() if "time/" not in key} for line in lines]
        elif file.suffix == ".parquet":
            import pyarrow.parquet

            held[name] = str(pyarrow.parquet.read_table(file).replace_schema_metadata().to_pylist())
        elif file.suffix == ".safetensors":  # tensors, not bytes: the header lists peft's sets in any order
            from safetensors.torch import load_file

            held[name] = {key: (str(x.dtype), x.numpy().tobytes()) for key, x in load_file(file).items()}
        elif file.suffix == ".json":
            held[name] = file.read_text().replace(str(folder.parent), "")
        else:
            held[name] = file.read_bytes()
    return held
