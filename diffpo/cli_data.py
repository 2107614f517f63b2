"""The commands `diffpo data ...`: look at pair tables, make them, bring them into shape."""

from __future__ import annotations

from typing import Annotated

import typer

data = typer.Typer(help="Look at pair tables, make them, label them.", no_args_is_help=True, rich_markup_mode=None)


@data.command("inspect")
def inspect_table(
    target: Annotated[str, typer.Argument(help="A table (file, folder, Hub id, shapes:pairs) or a config.")],
    split: Annotated[str, typer.Option(help="Split of a table.")] = "train",
) -> None:
    """Print what a pair table holds: rows, ties, sizes, broken images, prompts, what methods still need."""
    from rich.console import Console

    from diffpo.data.inspect import guess_source, inspect, render
    from diffpo.methods import METHODS

    if target.endswith((".yaml", ".yml")):
        from diffpo.config import load_config

        source = load_config(target).data
    else:
        source = guess_source(target, split)
    Console().print(render(inspect(source), {name: method.requires for name, method in METHODS.items()}))


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
