"""What trials begin with: tiny pipelines, images that say which row they belong to, prompts of the shapes world."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from PIL import Image

from trials.forks import once

SIDE = 64


def pipeline(world: Path) -> Path:
    """A tiny Stable Diffusion."""

    def make(folder: Path) -> None:
        import tiny

        tiny.save_pipeline("sd15", folder)

    return once(world / "sd15", make)


def pairs(world: Path) -> Path:
    """A clean pair table of 12 rows."""

    def make(folder: Path) -> None:
        import tiny

        tiny.save_pairs(folder, 12)

    return once(world / "pairs", make) / "pairs.jsonl"


def prompts(number: int) -> list[str]:
    """Different captions of the shapes world, the same ones always."""
    colors, shapes = ("red", "blue", "green", "yellow"), ("circle", "square", "triangle", "cross")
    found = [
        f"a {color} {shape} {relation} a {other} {second} on a white background"
        for relation in ("left of", "above", "below")
        for color in colors
        for other in colors
        if other != color
        for shape in shapes
        for second in shapes
    ]
    return found[:number]


def numbered(file: Path, number: int, side: int = 0) -> Path:
    """Write an image whose colour says its number and its side of a pair."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIDE, SIDE), color(number, side)).save(file)
    return file


def color(number: int, side: int = 0) -> tuple[int, int, int]:
    """The colour that says a number and a side."""
    return 10 * number, 200 * side, 50


def number_of(image: Image.Image) -> tuple[int, int]:
    """Which number and side an image says that it has."""
    red, green, _ = image.convert("RGB").getpixel((0, 0))
    return round(red / 10), int(green > 100)


def media(folder: Path, number: int) -> None:
    """A media folder as `generate` writes it, with two images per prompt; one that is there stays."""
    if folder.exists():
        return
    texts, lines = prompts(number // 2), []
    for i in range(number):
        name = f"{i // 2:06d}-s{i % 2}.png"
        numbered(folder / name, i)
        seen = {"file": name, "prompt": texts[i // 2], "prompt_id": i // 2, "seed": i % 2, "model": "base"}
        lines.append(json.dumps(seen))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")


def config(world: Path, output: Path) -> dict:
    """The configuration of a training of two updates."""
    return {
        "model": {"name": "lora", "path": str(pipeline(world)), "rank": 4},
        "method": {"name": "dpo", "beta": 2000},
        "data": {"name": "pairs", "path": str(pairs(world)), "resolution": 16},
        "train": {"steps": 2, "batch": 4, "learning_rate": 1e-3, "output": str(output)},
        "sample": {"steps": 2},
    }


def people(world: Path) -> Path:
    """A table with users and vectors of theirs, of two pairs for each of six prompts."""

    def make(folder: Path) -> None:
        import tiny

        tiny.save_pairs(folder, 12)
        rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
        told = [row | {"prompt": f"prompt {i // 2}", "user_id": f"user {i % 2}"} for i, row in enumerate(rows)]
        lines = [json.dumps(row | {"emb": [float(i % 2), 1.0, i / 12]}) for i, row in enumerate(told)]
        (folder / "pairs.jsonl").write_text("\n".join(lines))

    return once(world / "people", make) / "pairs.jsonl"


def users(world: Path) -> Path:
    """A folder of users' states, for the table of `people`."""

    def make(folder: Path) -> None:
        import tiny_users

        tiny_users.save_users(folder, {f"user {i}": [["x"], ["y"]] for i in range(2)})

    return once(world / "users", make)


def user_config(world: Path, output: Path) -> dict:
    """The configuration of a training that is told users."""
    tree = config(world, output)
    tree["model"] |= {"name": "user", "tokens": 4}
    tree["method"]["name"] = "ppd"
    tree["data"] |= {"path": str(people(world)), "users": str(users(world)), "user_dropout": 0.2}
    return tree


def encoded_config(world: Path, output: Path) -> dict:
    """The configuration of a training from shards."""

    def make(folder: Path) -> None:
        from accelerate import PartialState

        from diffpo.config.run import build
        from diffpo.training.stream import write_stream

        write_stream(build(config(world, output)), str(folder), PartialState(cpu=True), shard_rows=5)

    tree = config(world, output)
    tree["data"] |= {"encoded": str(once(world / "encoded", make)), "encoded_window": 2}
    return tree


def evaluation(world: Path, output: Path) -> dict:
    """The configuration of an evaluation of two models."""
    file = once(world / "prompts", lambda folder: _write_prompts(folder)) / "prompts.txt"
    return {
        "models": {"a": str(pipeline(world)), "b": {"path": str(pipeline(world))}},
        "prompts": str(file),
        "scorers": ["shapes", {"name": "shapes-utility"}],
        "seeds": [0, 1],
        "sampling": {"steps": 1, "guidance": 1.0, "batch": 2, "size": [64, 64], "device": "cpu"},
        "compare": {"resamples": 50},
        "output": str(output),
    }


def _write_prompts(folder: Path) -> None:
    folder.mkdir()
    (folder / "prompts.txt").write_text("\n".join(prompts(4)))


def write(file: Path, tree: dict) -> Path:
    """Write a configuration."""
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return file
