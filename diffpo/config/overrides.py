"""Overrides on the command line: `a.b=c` sets a field, `method=sft` chooses another block."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from diffpo.config.blocks import Named, note, parse_spec
from diffpo.config.reading import read_yaml
from diffpo.core.block import hints_of
from diffpo.errors import ConfigError


def override(tree: dict[str, Any], overrides: Sequence[str], cls: type) -> None:
    """Change a tree of plain values in place.

    Args:
        tree: What the file holds.
        overrides: Such as `method.beta=2000`, `method=sft`, `train.trackers=[wandb]`.
        cls: The configuration's class, whose named blocks an override may choose anew.

    Raises:
        ConfigError: One is no override.
    """
    named = {key: found for key, hint in hints_of(cls).items() if (found := note(hint, Named)) is not None}
    for each in overrides:
        path, sign, text = each.partition("=")
        keys = path.split(".")
        if not sign or not all(keys):
            raise ConfigError(f"override {each!r} should look like method.beta=2000")
        value = read_yaml(text, f"override {each!r}: {text}")
        if len(keys) == 1 and keys[0] in named and isinstance(value, str):
            tree[keys[0]] = _chosen(named[keys[0]], tree.get(keys[0]), value)
            continue
        node = tree
        for key in keys[:-1]:
            if node is tree and key in named and isinstance(tree.get(key), str):
                tree[key] = parse_spec(tree[key], named[key])
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise ConfigError(f"override {each!r}: {key} is no block of keys")
        node[keys[-1]] = value


def _chosen(named: Named, block: Any, spec: str) -> dict[str, Any]:
    """Replace a block by another of that name; a model or source keeps the fields that both have, such as its path."""
    given = parse_spec(spec, named)
    cls = named.known.get(given["name"])
    if not named.keeps or cls is None or not isinstance(block, dict):
        return given
    shared = {field.name for field in dataclasses.fields(cls)}
    return {key: value for key, value in block.items() if key in shared} | given
