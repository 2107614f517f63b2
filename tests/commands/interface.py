"""The interface as plain values: commands with their options, configuration keys with their defaults.

`interface.json` holds what users may rely on. When something new is added on purpose, write it there too with
`PYTHONPATH=. python tests/commands/interface.py`, and look at the difference: it only ever grows.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
import typer

FILE = Path(__file__).with_suffix(".json")


def every_command(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below a click group, groups included."""
    for name, found in group.commands.items():
        yield (*path, name), found
        if hasattr(found, "commands"):
            yield from every_command(found, (*path, name))


def plain(value: Any) -> Any:
    """A default as JSON holds it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def of_command(command: click.Command) -> dict[str, Any]:
    """Arguments and options of one command, with their defaults."""
    described = {}
    for parameter in command.params:
        names = (
            parameter.opts if isinstance(parameter, click.Argument) else [*parameter.opts, *parameter.secondary_opts]
        )
        for name in names:
            if name != "--help":
                described[name] = "required" if parameter.required else plain(parameter.default)
    return described


def of_block(block: type) -> dict[str, Any]:
    """Keys of one configuration class, with their defaults; blocks inside it as blocks."""
    hints, described = get_type_hints(block), {}
    for field in dataclasses.fields(block):
        if field.default_factory is not dataclasses.MISSING:
            default: Any = plain(field.default_factory())
        else:
            default = "required" if field.default is dataclasses.MISSING else plain(field.default)
        inner = [part for part in (hints[field.name], *get_args(hints[field.name])) if dataclasses.is_dataclass(part)]
        keys = {key: value for part in inner if not inspect.isabstract(part) for key, value in of_block(part).items()}
        described[field.name] = {"default": default, "keys": keys} if keys else default
    return described


def interface() -> dict[str, Any]:
    """All of it."""
    from diffpo.captioners import CAPTIONERS, LABELLERS, PERTURBERS
    from diffpo.commands.app import app
    from diffpo.config.evaluation import Evaluation
    from diffpo.config.run import Sample, Train
    from diffpo.curate.weights import WEIGHTINGS
    from diffpo.data import SOURCES
    from diffpo.methods import METHODS
    from diffpo.models.tunings import MODELS
    from diffpo.scorers import SCORERS

    tables = {"model": MODELS, "method": METHODS, "data": SOURCES, "scorer": SCORERS}
    tables |= {"captioner": CAPTIONERS, "perturber": PERTURBERS, "labeller": LABELLERS, "weighting": WEIGHTINGS}
    found = every_command(typer.main.get_command(app))
    return {
        "commands": {" ".join(path): of_command(command) for path, command in sorted(found, key=lambda item: item[0])},
        "blocks": {kind: {name: of_block(cls) for name, cls in table.items()} for kind, table in tables.items()},
        "train": {"train": of_block(Train), "sample": of_block(Sample)},
        "evaluate": of_block(Evaluation),
    }


def gone(then: Any, now: Any, where: str = "") -> list[str]:
    """Name what stands in `then` and is missing, or has another default, in `now`."""
    if isinstance(then, dict) and isinstance(now, dict):
        return [line for key, value in then.items() for line in gone(value, now.get(key, "absent"), f"{where}/{key}")]
    return [] if then == now else [f"{where}: {then!r} became {now!r}"]


if __name__ == "__main__":
    held = json.loads(FILE.read_text()) if FILE.exists() else {}
    FILE.write_text(json.dumps(held | interface(), indent=1, ensure_ascii=False) + "\n")
