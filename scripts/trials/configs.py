"""Configurations with random faults: keys, values, text. What is accepted is run."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from trials import worlds
from trials.forks import Draw, Trial

VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2**64, 1e308, float("nan"), float("inf"), -0.0, "", " ", "no", "yes", "017", "1:30"),
    *("1e-5", "auto", "../..", "/dev/null", "/dev/zero", "a\0b", "\udc00", "é" * 300, "x" * 5000, "${HOME}", "~", "*"),
    *([], {}, [[]], [None], {"name": None}, {"name": "dpo"}, [1, 2], {"a": {"b": {}}}, "dpo,beta=3", "{prompt}", "<<"),
)
TREES: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "train": worlds.config,
    "train users": worlds.user_config,
    "train shards": worlds.encoded_config,
    "evaluate": worlds.evaluation,
}
COSTLY = "resolution"
"""A key that stays, since without it the command works, but for long: on images of 512 x 512."""
TEXTS = (
    "train: {steps: 1, steps: 2}\n",
    "x: &a [*a]\n",
    "x: !!python/object/apply:os.getcwd []\n",
    "? [a]\n: 1\n",
    "null: {}\n",
    "\t- a\n",
    "--- \n",
    "x: [" + "[" * 2000,
    "a: &a {x: 1}\n"
    + "".join(f"b{i}: &b{i} [{', '.join(['*a' if i == 0 else f'*b{i - 1}'] * 9)}]\n" for i in range(20)),
)


def trial(draw: Draw) -> Trial:
    """A configuration of train (of pairs, users or shards) or evaluate with one to four faults, or none."""
    rng, folder, world = draw.rng, draw.folder, draw.world
    name = rng.choice(list(TREES))
    tree = TREES[name](world, folder / "out")
    told = []
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        told.append(_change(rng, tree))
    try:
        text = yaml.safe_dump(tree, sort_keys=False).encode()
    except (yaml.YAMLError, UnicodeEncodeError):
        text = repr(tree).encode("utf-8", "surrogatepass")
    if rng.random() < 0.25:
        text = _spoil(rng, text)
    file = folder / "x.yaml"
    file.write_bytes(text)
    return Trial(f"{name}: {'; '.join(told)}"[:300], name, [[name.split()[0], str(file)]], seconds=60)


def _change(rng: random.Random, tree: dict[str, Any]) -> str:
    """Change one place of a tree; returns what was done."""
    node: dict[str, Any] = tree
    path = []
    while True:
        key = rng.choice(list(node)) if node else "new"
        path.append(str(key))
        if isinstance(node.get(key), dict) and node[key] and rng.random() < 0.8:
            node = node[key]
            continue
        break
    kind = rng.choice(("value", "value", "value", "delete", "rename", "add"))
    if key.lower() == COSTLY and kind == "delete":
        kind = "value"
    if kind == "value":
        node[key] = rng.choice(VALUES)
    elif kind == "delete":
        node.pop(key, None)
    elif kind == "rename":
        node[rng.choice((f"{key}s", str(key).upper(), str(key)[:-1], f" {key}", ""))] = node.pop(key, 1)
    else:
        node[rng.choice(("lr", "epochs", "name", "new", "path", "output"))] = rng.choice(VALUES)
    return f"{kind} {'.'.join(path)}"


def _spoil(rng: random.Random, text: bytes) -> bytes:
    """Change the text itself."""
    at = rng.randrange(len(text))
    kind = rng.randrange(6)
    if kind == 0:
        return text[:at]
    if kind == 1:
        return text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
    if kind == 2:
        return rng.choice(TEXTS).encode() + text
    if kind == 3:
        return text + rng.choice(TEXTS).encode()
    if kind == 4:
        return text.decode(errors="replace").encode(rng.choice(("utf-16", "utf-8-sig", "utf-32")))
    lines = text.splitlines(keepends=True)
    rng.shuffle(lines)
    return b"".join(lines)
