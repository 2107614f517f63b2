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


@data.command("score")
def score_table(
    target: Annotated[str, typer.Argument(help="A table (file, folder, Hub id, shapes:pairs) or a config.")],
    scorer: Annotated[str, typer.Option("--scorer", "-s", help="Such as pickscore,scale=cosine.")],
    out: Annotated[Path, typer.Option(help="The folder of the new table.")],
    normalise: Annotated[str, typer.Option(help="minmax, quantiles, released (SmPO's constants) or none.")] = "minmax",
    quantiles: Annotated[tuple[float, float], typer.Option(help="For --normalise quantiles.")] = (0.01, 0.99),
    temperature: Annotated[float, typer.Option(help="Smaller: more certain labels.")] = 1.0,
    order: Annotated[str, typer.Option(help="human keeps the order, scorer puts the higher score first.")] = "human",
    batch: Annotated[int, typer.Option(help="Images at a time, at most 64.")] = 32,
    split: Annotated[str | None, typer.Option(help="Split of the table; train by default.")] = None,
    validation_split: Annotated[str | None, typer.Option(help="Another split, to be labelled alike.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use the first so many pairs only.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace a table made with other settings.")] = False,
) -> None:
    """Score both images of every pair and add soft labels; the same command continues after a kill."""
    import dataclasses

    from diffpo.data.labels import Labelling
    from diffpo.options import make_scorer, validated

    given = {"normalise": normalise, "quantiles": quantiles, "temperature": temperature, "order": order}
    labelling, made = validated(Labelling, given, "score"), make_scorer(scorer)
    quiet()
    from diffpo.data.score_pairs import score_pairs

    changes = {"split": split, "validation_split": validation_split, "limit": limit}
    source = find_source(target, split or "train")
    source = dataclasses.replace(source, **{k: v for k, v in changes.items() if v is not None})
    done = score_pairs(source, made, out, labelling, batch=batch, fresh=fresh)
    say(
        f"wrote {', '.join(map(str, done.files))}: {done}; how it was made: {out}/train.provenance.json",
        training_command(target, out, validation="validation" in done.pairs),
    )


@data.command("build")
def build_table(
    folders: Annotated[list[Path], typer.Argument(help="Media folders of diffpo generate.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The folder of the new table.")],
    scorer: Annotated[str | None, typer.Option("--scorer", "-s", help="Ranks: a score they have, or a scorer.")] = None,
    choices: Annotated[Path | None, typer.Option(help="CSV: file_0, file_1, choice (0, 1, tie), user_id.")] = None,
    strategy: Annotated[str | None, typer.Option(help="best-worst (default), or all against all.")] = None,
    margin: Annotated[float | None, typer.Option(help="Scores that differ by less are a tie; 0 by default.")] = None,
    ties: Annotated[str, typer.Option(help="drop, or keep with preference 0.5.")] = "drop",
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace a table made with other settings.")] = False,
) -> None:
    """Make pairs of generated images, ranked by a scorer or chosen by people."""
    from diffpo.errors import UserError
    from diffpo.options import make_scorer, validated

    quiet()
    from diffpo.data.build import Output, Ranking, build_by_choices, build_by_scores

    given = {key: value for key, value in {"strategy": strategy, "margin": margin}.items() if value is not None}
    if (scorer is None) == (choices is None):
        raise UserError("say who ranks the images: either --scorer NAME or --choices FILE.csv.")
    if choices is not None and given:
        raise UserError(f"--choices lists the pairs itself: leave out {', '.join(f'--{name}' for name in given)}.")
    output = validated(Output, {"folder": out, "ties": ties, "fresh": fresh}, "build")
    if choices is not None:
        built = build_by_choices(folders, choices, output)
    else:
        ranking = validated(Ranking, given, "build")
        built = build_by_scores(folders, scorer, lambda: make_scorer(scorer), ranking, output)
    say(f"wrote {built}; how it was made: {out}/train.provenance.json", f"diffpo data inspect {out}")


def training_command(target: str, folder: Path, *, validation: bool) -> str:
    """Say how to learn from a labelled table that was made of `target`, a config or a table."""
    from diffpo.config import load_config

    example = "configs/shapes-smpo.yaml" if target == "shapes:pairs" else "configs/sd15-smpo.yaml"
    config = target if is_config(target) else example
    loaded = load_config(config)
    method = [] if "preference" in loaded.method.requires else ["method=smpo"]
    wanted = {"split": "train", "validation_split": "validation" if validation else None, "validation_path": None}
    if not validation and (loaded.data.validation_split or loaded.data.validation_path):
        wanted["validation_fraction"] = 0.05  # the config holds something out
    changed = {key: value or "null" for key, value in wanted.items() if getattr(loaded.data, key) != value}
    overrides = [*method, "data.name=pairs", f"data.path={folder}", *(f"data.{k}={v}" for k, v in changed.items())]
    return f"diffpo train {config} {' '.join(overrides)}"


def is_config(target: str) -> bool:
    """Whether a command's first argument is a config."""
    return target.endswith((".yaml", ".yml"))


def find_source(target: str, split: str) -> Source:
    """The pairs that a command's first argument means: a config's data block, or a table and its split."""
    if is_config(target):
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
