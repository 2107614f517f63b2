"""The commands `diffpo data ...` that look at pair tables and make them: inspect, import, build."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffpo.commands.shared import quiet, say

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


def inspect_table(target: Target, split: Split = None, columns: Columns = None) -> None:
    """Print what a pair table holds: rows, ties, sizes, broken images, prompts, what methods still need."""
    from rich.console import Console

    from diffpo.curate.inspect import inspect, render
    from diffpo.methods import METHODS

    report = inspect(find_source(target, split, columns=columns))
    Console().print(render(report, {name: method.requires for name, method in METHODS.items()}))


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
    from diffpo.config.blocks import make

    quiet()
    from diffpo.curate.imports.run import ImportOptions, import_table

    given = {"layout": layout, "ties": ties, "labels": labels, "images": images}
    report = import_table(source, out, make(ImportOptions, given, "import"))
    print("\n".join(report.lines()))
    if report.graded and labels == "hard":
        print(f"{report.graded} labels are shares of votes; --labels soft keeps them as preference")
    say(f"wrote {report.pairs} pairs to {out}", f"diffpo data inspect {out}")


def build_table(
    folders: Annotated[list[Path], typer.Argument(help="Media folders of diffpo generate.", show_default=False)],
    out: Out,
    scorer: Annotated[str | None, typer.Option("--scorer", "-s", help="Ranks: a score they have, or a scorer.")] = None,
    choices: Annotated[Path | None, typer.Option(help="CSV: file_0, file_1, choice (0, 1, tie), user_id.")] = None,
    strategy: Annotated[str | None, typer.Option(help="best-worst (default), or all against all.")] = None,
    margin: Annotated[float | None, typer.Option(help="Scores that differ by less are a tie; 0 by default.")] = None,
    ties: Annotated[str, typer.Option(help="drop, or keep with preference 0.5.")] = "drop",
    fresh: FreshTable = False,
) -> None:
    """Make pairs of generated images, ranked by a scorer or chosen by people."""
    from diffpo.config.blocks import make
    from diffpo.config.options import make_scorer
    from diffpo.errors import UserError

    quiet()
    from diffpo.curate.build import Output, Pairing, build_by_choices, build_by_scores

    given = {key: value for key, value in {"strategy": strategy, "margin": margin}.items() if value is not None}
    if (scorer is None) == (choices is None):
        raise UserError("say who ranks the images: either --scorer NAME or --choices FILE.csv.")
    if choices is not None and given:
        raise UserError(f"--choices lists the pairs itself: leave out {', '.join(f'--{name}' for name in given)}.")
    output = make(Output, {"folder": out, "ties": ties, "fresh": fresh}, "build")
    if choices is not None:
        built = build_by_choices(folders, choices, output)
    else:
        pairing = make(Pairing, given, "build")
        built = build_by_scores(folders, scorer, lambda: make_scorer(scorer), pairing, output)
    say(f"wrote {built}; how it was made: {out}/train.provenance.json", f"diffpo data inspect {out}")


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
