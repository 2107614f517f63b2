"""What the commands on pair tables share: their options, the table that is meant, and what is said at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffpo.commands.shared import say

if TYPE_CHECKING:
    from diffpo.data.records import Source

YAML = (".yaml", ".yml")
"""How a target ends that is a config."""
Target = Annotated[str, typer.Argument(help="A table (file, folder, Hub id, shapes:pairs) or a config.")]
Out = Annotated[Path, typer.Option(help="The folder of the new table.")]
Split = Annotated[str | None, typer.Option(help="Split of the table; train by default.")]
ValidationSplit = Annotated[str | None, typer.Option(help="Another split, to be treated alike.")]
Limit = Annotated[int | None, typer.Option(help="Use the first so many pairs only.")]
Columns = Annotated[str | None, typer.Option(help="The table's names: prompt=caption,chosen=winner,rejected=loser.")]
FreshTable = Annotated[bool, typer.Option("--fresh", help="Replace a table made with other settings.")]


def say_table(files: Sequence[Path], done: str, target: str, example: str, folder: Path, more: str = "") -> None:
    """Say what was written, and how to learn from it: with `target`, if it is a config, else with the example."""
    from diffpo.config.run import load_config

    config, wants = target if target.endswith(YAML) else example, load_config(example)
    loaded, validation = load_config(config), len(files) > 1
    method = [] if loaded.method.columns >= wants.method.columns else [f"method={wants.method_name}"]
    wanted = {"split": "train", "validation_split": "validation" if validation else None, "validation_path": None}
    if not validation and (loaded.data.validation_split or loaded.data.validation_path):
        wanted["validation_fraction"] = 0.05  # the config holds something out
    changed = {key: value or "null" for key, value in wanted.items() if getattr(loaded.data, key) != value}
    overrides = [*method, "data.name=pairs", f"data.path={folder}", *(f"data.{k}={v}" for k, v in changed.items())]
    say(
        f"wrote {', '.join(map(str, files))}{done}; how it was made: {folder}/train.provenance.json{more}",
        f"diffpo train {config} {' '.join(overrides)}",
    )


def find_source(
    target: str,
    split: str | None = None,
    validation_split: str | None = None,
    limit: int | None = None,
    columns: str | None = None,
) -> Source:
    """The pairs that a command's first argument means: a config's data block, or a table and its splits."""
    import dataclasses

    named = read_columns_option(columns)
    if target.endswith(YAML):
        from diffpo.config.run import load_config

        source = load_config(target).data
    else:
        from diffpo.curate.inspect import guess_source

        source = guess_source(target, split or "train", named)
    changes = {"split": split, "validation_split": validation_split, "limit": limit, "columns": named or None}
    return dataclasses.replace(source, **{name: value for name, value in changes.items() if value is not None})


def read_columns_option(text: str | None) -> dict[str, str]:
    """Read `prompt=caption,chosen=winner`."""
    from diffpo.errors import UserError

    pairs = [part.split("=") for part in (text or "").split(",") if part.strip()]
    if any(len(pair) != 2 or not all(name.strip() for name in pair) for pair in pairs):
        raise UserError(f"--columns is {text!r}; it says OUR=THEIRS, ...: prompt=caption,chosen=winner,rejected=loser.")
    return {ours.strip(): theirs.strip() for ours, theirs in pairs}
