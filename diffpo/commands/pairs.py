"""The commands `diffpo data ...`, which look at pair tables, make them and label them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffpo.commands.shared import listed, quiet, say
from diffpo.commands.tables import (
    Columns,
    FreshTable,
    Limit,
    Out,
    Split,
    Target,
    ValidationSplit,
    find_source,
    say_table,
)

DCPO = ("configs/shapes-dcpo.yaml", "configs/sd21-dcpo.yaml")
"""What to train with on captions of the shapes world, and on others."""


def inspect_table(target: Target, split: Split = None, columns: Columns = None) -> None:
    """Print what a pair table holds: rows, ties, sizes, broken images, prompts, what methods still need."""
    from rich.console import Console

    from diffpo.curate.inspect import inspect, render
    from diffpo.methods import METHODS

    report = inspect(find_source(target, split, columns=columns))
    Console().print(render(report, {name: method.requires for name, method in METHODS.items()}))


def show_table(
    target: Target,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("pairs.html"),
    pairs: Annotated[int, typer.Option(help="How many pairs.", min=1)] = 12,
    shuffle: Annotated[
        int | None, typer.Option(help="Draw pairs at random with this seed, not the first ones.", min=0)
    ] = None,
    split: Split = None,
    columns: Columns = None,
) -> None:
    """Write one self-contained HTML file of some pairs, images or clips, with the labels of their segments."""
    from diffpo.commands.show import show_pairs

    quiet()
    written = listed(out)
    for what in show_pairs(find_source(target, split, columns=columns), out, pairs, shuffle):
        print(f"left out: {what}")
    say(f"wrote {written}", f"open {out} in a browser")


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


def score_table(
    target: Target,
    scorer: Annotated[str, typer.Option("--scorer", "-s", help="Such as pickscore,scale=cosine.")],
    out: Out,
    normalise: Annotated[str, typer.Option(help="minmax, quantiles, released (SmPO's constants) or none.")] = "minmax",
    quantiles: Annotated[tuple[float, float], typer.Option(help="For --normalise quantiles.")] = (0.01, 0.99),
    temperature: Annotated[float, typer.Option(help="Smaller: more certain labels.")] = 1.0,
    order: Annotated[str, typer.Option(help="human keeps the order, scorer puts the higher score first.")] = "human",
    batch: Annotated[int, typer.Option(help="Images at a time, at most 64.", min=1)] = 32,
    split: Split = None,
    validation_split: ValidationSplit = None,
    limit: Limit = None,
    columns: Columns = None,
    fresh: FreshTable = False,
) -> None:
    """Score both images of every pair and add soft labels; the same command continues after a kill."""
    from diffpo.config.blocks import make
    from diffpo.config.options import make_scorer
    from diffpo.curate.labels import Labelling

    given = {"normalise": normalise, "quantiles": quantiles, "temperature": temperature, "order": order}
    labelling, made = make(Labelling, given, "score"), make_scorer(scorer)
    quiet()
    from diffpo.curate.score import score_pairs

    source = find_source(target, split, validation_split, limit, columns)
    done = score_pairs(source, made, out, labelling, batch=batch, fresh=fresh)
    example = "configs/shapes-smpo.yaml" if target == "shapes:pairs" else "configs/sd15-smpo.yaml"
    say_table(done.files, f": {done}", target, example, out)


def agreement_of_scorers(
    target: Target,
    scorer: Annotated[list[str], typer.Option("--scorer", "-s", help="Such as pickscore; may be repeated.")],
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = Path("agreement.json"),
    ties: Annotated[str, typer.Option(help="keep judges pairs that people called even too; or drop.")] = "keep",
    tie_threshold: Annotated[float, typer.Option(help="Probabilities that differ by less are a scorer's tie.")] = 0.0,
    batch: Annotated[int, typer.Option(help="Images at a time.", min=1)] = 32,
    split: Split = None,
    limit: Limit = None,
    columns: Columns = None,
) -> None:
    """Count how often scorers agree with the people who labelled a pair table; a killed call continues."""
    import dataclasses

    from diffpo.config.blocks import make
    from diffpo.config.options import make_scorer

    made = [make_scorer(spec) for spec in scorer]
    quiet()
    from rich.console import Console

    from diffpo.curate.agreement import Counting, agreement, agreement_table
    from diffpo.disk.files import check_output, without_nan, write_json

    check_output(out)
    written = listed(out)
    counting = make(Counting, {"tie_threshold": tie_threshold}, "agreement")
    found_source = find_source(target, split, limit=limit, columns=columns)
    source = make(type(found_source), dataclasses.asdict(found_source) | {"ties": ties}, "agreement")
    found = agreement(source, made, counting, batch=batch)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, without_nan(dataclasses.asdict(found)))
    Console().print(agreement_table(found))
    broken = f"; {len(found.broken)} pairs with a broken image are left out" if found.broken else ""
    best = max(found.scorers, key=lambda row: row.agreement).scorer
    spec = next(spec for spec, each in zip(scorer, made, strict=True) if each.name == best)
    say(
        f"wrote {written}{broken}",
        f"diffpo data score {target} --scorer {spec} --out {out.with_suffix('')}-scored",
    )


def caption_table(
    target: Target,
    captioner: Annotated[str, typer.Option(help="shapes, or transformers,path=MODEL,sees=image+prompt|image,...")],
    out: Out,
    split: Split = None,
    validation_split: ValidationSplit = None,
    limit: Limit = None,
    columns: Columns = None,
    fresh: FreshTable = False,
) -> None:
    """Caption both images of every pair (DCPO-c); the same command continues after a kill."""
    from diffpo.captioners import CAPTIONERS
    from diffpo.config.options import from_spec

    made = from_spec(captioner, CAPTIONERS, "captioner")
    quiet()
    from diffpo.curate.caption import caption_pairs

    files = caption_pairs(find_source(target, split, validation_split, limit, columns), made, out, fresh=fresh)
    example, perturber = (DCPO[0], "shapes") if made.name == "shapes" else (DCPO[1], "dipper")
    more = f"\nfor DCPO-h: diffpo data perturb {out} --perturber {perturber} --preset hybrid --out {out}-hybrid"
    say_table(files, "", target, example, out, more)


def perturb_table(
    target: Target,
    perturber: Annotated[str, typer.Option(help="dipper, instruct or shapes; with options: dipper,level=strong.")],
    preset: Annotated[
        str,
        typer.Option(
            help="The rejected caption is, perturbed: the prompt (perturbation, DCPO-p; the chosen image keeps the "
            "prompt), its own caption (hybrid, DCPO-h), or the chosen image's (hybrid-chosen)."
        ),
    ],
    out: Out,
    split: Split = None,
    validation_split: ValidationSplit = None,
    limit: Limit = None,
    columns: Columns = None,
    fresh: FreshTable = False,
) -> None:
    """Perturb a caption of every pair (DCPO-p, DCPO-h); the same command continues after a kill."""
    from diffpo.captioners import PERTURBERS
    from diffpo.config.options import from_spec
    from diffpo.curate.caption import perturb_pairs, read_preset

    made, wanted = from_spec(perturber, PERTURBERS, "perturber"), read_preset(preset)
    quiet()
    files = perturb_pairs(find_source(target, split, validation_split, limit, columns), made, out, wanted, fresh=fresh)
    say_table(files, "", target, DCPO[0] if made.name == "shapes" else DCPO[1], out)


def weigh_table(
    target: Target,
    by: Annotated[str, typer.Option(help="videodpo (rare scores weigh more; alpha=, beta=, bin=) or lambda (ranks).")],
    out: Out,
    split: Split = None,
    validation_split: ValidationSplit = None,
    limit: Limit = None,
    columns: Columns = None,
    fresh: FreshTable = False,
) -> None:
    """Weigh the pairs of a scored table: what the loss of each is multiplied with in training."""
    from diffpo.config.options import from_spec
    from diffpo.curate.weights import WEIGHTINGS, weigh_pairs

    weighting = from_spec(by, WEIGHTINGS, "weighting")
    quiet()
    done = weigh_pairs(find_source(target, split, validation_split, limit, columns), weighting, out, fresh=fresh)
    example = "configs/shapes-dpo.yaml" if target == "shapes:pairs" else "configs/sd15-dpo.yaml"
    say_table(done.files, f": {done}", target, example, out)
