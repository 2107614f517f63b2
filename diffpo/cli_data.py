"""The commands `diffpo data ...`: look at pair tables, make them, bring them into shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from diffpo.data.records import Source

data = typer.Typer(help="Look at pair tables, make them, label them.", no_args_is_help=True, rich_markup_mode=None)


@data.command("inspect")
def inspect_table(
    target: Annotated[str, typer.Argument(help="A table (file, folder, Hub id, shapes:pairs) or a config.")],
    split: Annotated[str, typer.Option(help="Split of a table.")] = "train",
) -> None:
    """Print what a pair table holds: rows, ties, sizes, broken images, prompts, what methods still need."""
    from rich.console import Console

    from diffpo.data.inspect import inspect, render
    from diffpo.methods import METHODS

    report = inspect(find_source(target, split))
    Console().print(render(report, {name: method.requires for name, method in METHODS.items()}))


def find_source(target: str, split: str) -> Source:
    """The pairs that a command's first argument means: a config's data block, or a table and its split."""
    if target.endswith((".yaml", ".yml")):
        from diffpo.config import load_config

        return load_config(target).data
    from diffpo.data.inspect import guess_source

    return guess_source(target, split)


def quiet() -> None:
    """Hide what libraries say while loading; our own warnings are shown."""
    import logging

    from diffpo.compat import quiet_libraries

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    quiet_libraries()


def say(what: str, next_command: str) -> None:
    """End a command: what it wrote, and what to run next; of several processes only the first one speaks."""
    import os

    if os.environ.get("RANK", "0") == "0":
        print(f"{what}\nnext: {next_command}")
