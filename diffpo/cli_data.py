"""The commands `diffpo data ...`: look at pair tables, make them, bring them into shape."""

from __future__ import annotations

from pathlib import Path
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


@data.command("import")
def import_pairs(
    source: Annotated[str, typer.Argument(help="A folder of images, tars, or a list: see --layout.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    layout: Annotated[
        str | None,
        typer.Option(
            help="twin-folders, suffixes, json-list, webdataset, hpdv2 or open-image-preferences; else what fits."
        ),
    ] = None,
    ties: Annotated[str, typer.Option(help="drop them, or keep them with preference 0.5.")] = "drop",
    labels: Annotated[str, typer.Option(help="hard, or soft: the share of votes becomes preference.")] = "hard",
    images: Annotated[str, typer.Option(help="embed the files, or link their paths.")] = "embed",
) -> None:
    """Bring pairs from tars, folders or rankings into a table; the same command continues after a kill."""
    from diffpo.options import validated

    quiet()
    from diffpo.data.imports import ImportOptions, import_table

    given = {"layout": layout, "ties": ties, "labels": labels, "images": images}
    report = import_table(source, out, validated(ImportOptions, given, "import"))
    print("\n".join(report.lines()))
    if report.graded and labels == "hard":
        print(f"{report.graded} labels are shares of votes; --labels soft keeps them as preference")
    say(f"wrote {report.pairs} pairs to {out}", f"diffpo data inspect {out}")


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
