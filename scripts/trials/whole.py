"""Commands that write, what each leaves behind when nothing disturbs it, and what another call left otherwise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trials import worlds
from trials.forks import Kill, run

VOLATILE = {"report.html", "grid.png", "README.md", "run.json", "config.yaml", "evaluation.yaml", "settings.json"}
"""Files that say when or where, or that are drawn of the others."""
FSDP2 = {"ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@dataclass(frozen=True)
class Whole:
    """What a command does that nothing disturbs."""

    folder: Path
    """It wrote to `folder / out`."""
    seconds: float
    writes: int
    """How often it changed the disk."""


def find_whole(name: str, world: Path) -> Whole:
    """The undisturbed call of a command; made once for all trials of a campaign."""
    folder = world / "whole" / name.replace(" ", "-")
    if not (folder / "done.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        ended = run(arguments(name, folder, world), folder, 600, processes(name), Kill(), env(name))
        assert ended.code == 0, ended.text
        made = {"seconds": ended.seconds, "writes": int((folder / "writes").read_text())}
        (folder / "done.json").write_text(json.dumps(made))
    return Whole(folder, **json.loads((folder / "done.json").read_text()))


def processes(name: str) -> int:
    """How many share a command."""
    return 2 if name == "train FSDP2" else 1


def env(name: str) -> Mapping[str, str]:
    """How they share it."""
    return FSDP2 if name == "train FSDP2" else {}


def arguments(name: str, folder: Path, world: Path) -> list[str]:
    """The command, writing to `folder / out`."""
    out = folder / "out"
    if name.startswith("train"):
        tree = worlds.config(world, out)
        tree["train"] |= {"steps": 6, "checkpoint_every": 2, "sample_every": 3, "batch": 4 // processes(name)}
        tree["train"] |= {"ema": 0.9 * (name == "train average")}
        tree["data"]["cache_dir"] = str(folder / "cache")
        tree["sample"] |= {"prompts": worlds.prompts(1), "size": [16, 16]}
        if name in ("train full", "train FSDP2"):
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
    if name == "data encode":
        file = worlds.write(folder / "x.yaml", worlds.config(world, folder / "run"))
        return f"data encode {file} --out {out} --shard-rows 2".split()
    if name == "data users":
        how = "--embedder column,of=trials --pairs 2 --draws 2"
        return f"data users {worlds.people(world)} --out {out} {how}".split()
    worlds.media(out if name == "score" else folder / "media", 24)
    if name == "score":
        return f"score {out} --scorer shapes --scorer shapes-utility".split()
    return f"data build {folder}/media --scorer shapes --ties keep --out {out}".split()


def differences(whole: Path, other: Path) -> list[str]:
    """Compare two folders: names, tensors, pictures, rows."""
    a, b = _contents(whole), _contents(other)
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

            rows = pyarrow.parquet.read_table(file).replace_schema_metadata().to_pylist()
            held[name] = sorted(map(repr, rows)) if file.name == "scores.parquet" else repr(rows)
        elif file.suffix == ".safetensors":  # tensors, not bytes: the header lists peft's sets in any order
            from safetensors.torch import load_file

            held[name] = {key: (str(x.dtype), x.numpy().tobytes()) for key, x in load_file(file).items()}
        elif file.suffix == ".json":
            held[name] = file.read_text().replace(str(folder.parent), "")
        else:
            held[name] = file.read_bytes()
    return held
