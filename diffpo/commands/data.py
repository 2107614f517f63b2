"""The commands `diffpo data ...`: look at pair tables, make them, bring them into shape."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from diffpo.data.records import Source

data = typer.Typer(help="Look at pair tables, make them, label them.", no_args_is_help=True, rich_markup_mode=None)

Target = Annotated[str, typer.Argument(help="A table (file, folder, Hub id, shapes:pairs) or a config.")]
Out = Annotated[Path, typer.Option(help="The folder of the new table.")]
Split = Annotated[str | None, typer.Option(help="Split of the table; train by default.")]
ValidationSplit = Annotated[str | None, typer.Option(help="Another split, to be treated alike.")]
Limit = Annotated[int | None, typer.Option(help="Use the first so many pairs only.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Replace a table made with other settings.")]


@data.command("inspect")
def inspect_table(
    target: Target,
    split: Split = None,
) -> None:
    """Print what a pair table holds: rows, ties, sizes, broken images, prompts, what methods still need."""
    from rich.console import Console

    from diffpo.curate.inspect import inspect, render
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
    from diffpo.config.options import validated

    quiet()
    from diffpo.curate.imports.run import ImportOptions, import_table

    given = {"layout": layout, "ties": ties, "labels": labels, "images": images}
    report = import_table(source, out, validated(ImportOptions, given, "import"))
    print("\n".join(report.lines()))
    if report.graded and labels == "hard":
        print(f"{report.graded} labels are shares of votes; --labels soft keeps them as preference")
    say(f"wrote {report.pairs} pairs to {out}", f"diffpo data inspect {out}")


@data.command("score")
def score_table(
    target: Target,
    scorer: Annotated[str, typer.Option("--scorer", "-s", help="Such as pickscore,scale=cosine.")],
    out: Out,
    normalise: Annotated[str, typer.Option(help="minmax, quantiles, released (SmPO's constants) or none.")] = "minmax",
    quantiles: Annotated[tuple[float, float], typer.Option(help="For --normalise quantiles.")] = (0.01, 0.99),
    temperature: Annotated[float, typer.Option(help="Smaller: more certain labels.")] = 1.0,
    order: Annotated[str, typer.Option(help="human keeps the order, scorer puts the higher score first.")] = "human",
    batch: Annotated[int, typer.Option(help="Images at a time, at most 64.")] = 32,
    split: Split = None,
    validation_split: ValidationSplit = None,
    limit: Limit = None,
    fresh: Fresh = False,
) -> None:
    """Score both images of every pair and add soft labels; the same command continues after a kill."""
    from diffpo.config.options import make_scorer, validated
    from diffpo.curate.labels import Labelling

    given = {"normalise": normalise, "quantiles": quantiles, "temperature": temperature, "order": order}
    labelling, made = validated(Labelling, given, "score"), make_scorer(scorer)
    quiet()
    from diffpo.curate.score import score_pairs

    source = find_source(target, split, validation_split, limit)
    done = score_pairs(source, made, out, labelling, batch=batch, fresh=fresh)
    example = "configs/shapes-smpo.yaml" if target == "shapes:pairs" else "configs/sd15-smpo.yaml"
    say(
        f"wrote {', '.join(map(str, done.files))}: {done}; how it was made: {out}/train.provenance.json",
        training_command(target, example, out, validation="validation" in done.pairs),
    )


@data.command("agreement")
def agreement_of_scorers(
    target: Target,
    scorer: Annotated[list[str], typer.Option("--scorer", "-s", help="Such as pickscore; may be repeated.")],
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = Path("agreement.json"),
    ties: Annotated[str, typer.Option(help="keep judges pairs that people called even too; or drop.")] = "keep",
    tie_threshold: Annotated[float, typer.Option(help="Probabilities that differ by less are a scorer's tie.")] = 0.0,
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 32,
    split: Split = None,
    limit: Limit = None,
) -> None:
    """Count how often scorers agree with the people who labelled a pair table; a killed call continues."""
    import dataclasses

    from diffpo.config.options import make_scorer, validated

    made = [make_scorer(spec) for spec in scorer]
    quiet()
    from rich.console import Console

    from diffpo.curate.agreement import Counting, agreement, agreement_table, write_agreement

    counting = validated(Counting, {"tie_threshold": tie_threshold}, "agreement")
    found_source = find_source(target, split, limit=limit)
    source = validated(type(found_source), dataclasses.asdict(found_source) | {"ties": ties}, "agreement")
    found = agreement(source, made, counting, batch=batch)
    write_agreement(out, found)
    Console().print(agreement_table(found))
    broken = f"; {len(found.broken)} pairs with a broken image are left out" if found.broken else ""
    best = max(found.scorers, key=lambda row: row.agreement).scorer
    spec = next(spec for spec, each in zip(scorer, made, strict=True) if each.name == best)
    say(f"wrote {out}{broken}", f"diffpo data score {target} --scorer {spec} --out {out.with_suffix('')}-scored")


@data.command("caption")
def caption_table(
    target: Target,
    captioner: Annotated[str, typer.Option(help="shapes, or transformers,path=MODEL,sees=image+prompt|image,...")],
    out: Out,
    split: Split = None,
    validation_split: ValidationSplit = None,
    limit: Limit = None,
    fresh: Fresh = False,
) -> None:
    """Caption both images of every pair (DCPO-c); the same command continues after a kill."""
    from diffpo.config.options import make_captioner

    made = make_captioner(captioner)
    quiet()
    from diffpo.curate.caption import caption_pairs

    files = caption_pairs(find_source(target, split, validation_split, limit), made, out, fresh=fresh)
    example = "configs/shapes-dcpo.yaml" if made.name == "shapes" else "configs/sd21-dcpo.yaml"
    perturber = "shapes" if made.name == "shapes" else "dipper"
    say(
        f"wrote {', '.join(map(str, files))}; how it was made: {out}/train.provenance.json\n"
        f"for DCPO-h: diffpo data perturb {out} --perturber {perturber} --preset hybrid --out {out}-hybrid",
        training_command(target, example, out, validation=len(files) > 1),
    )


@data.command("perturb")
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
    fresh: Fresh = False,
) -> None:
    """Perturb a caption of every pair (DCPO-p, DCPO-h); the same command continues after a kill."""
    from diffpo.config.options import make_perturber
    from diffpo.curate.caption import perturb_pairs, read_preset

    made, wanted = make_perturber(perturber), read_preset(preset)
    quiet()
    files = perturb_pairs(find_source(target, split, validation_split, limit), made, out, wanted, fresh=fresh)
    example = "configs/shapes-dcpo.yaml" if made.name == "shapes" else "configs/sd21-dcpo.yaml"
    say(
        f"wrote {', '.join(map(str, files))}; how it was made: {out}/train.provenance.json",
        training_command(target, example, out, validation=len(files) > 1),
    )


@data.command("build")
def build_table(
    folders: Annotated[list[Path], typer.Argument(help="Media folders of diffpo generate.", show_default=False)],
    out: Out,
    scorer: Annotated[str | None, typer.Option("--scorer", "-s", help="Ranks: a score they have, or a scorer.")] = None,
    choices: Annotated[Path | None, typer.Option(help="CSV: file_0, file_1, choice (0, 1, tie), user_id.")] = None,
    strategy: Annotated[str | None, typer.Option(help="best-worst (default), or all against all.")] = None,
    margin: Annotated[float | None, typer.Option(help="Scores that differ by less are a tie; 0 by default.")] = None,
    ties: Annotated[str, typer.Option(help="drop, or keep with preference 0.5.")] = "drop",
    fresh: Fresh = False,
) -> None:
    """Make pairs of generated images, ranked by a scorer or chosen by people."""
    from diffpo.config.options import make_scorer, validated
    from diffpo.errors import UserError

    quiet()
    from diffpo.curate.build import Output, Ranking, build_by_choices, build_by_scores

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


def training_command(target: str, example: str, folder: Path, *, validation: bool) -> str:
    """Say how to learn from a derived table: with `target`, if it is a config, else with the example's settings."""
    from diffpo.config.run import load_config

    config, wants = target if is_config(target) else example, load_config(example)
    loaded = load_config(config)
    method = [] if loaded.method.requires >= wants.method.requires else [f"method={wants.method_name}"]
    wanted = {"split": "train", "validation_split": "validation" if validation else None, "validation_path": None}
    if not validation and (loaded.data.validation_split or loaded.data.validation_path):
        wanted["validation_fraction"] = 0.05  # the config holds something out
    changed = {key: value or "null" for key, value in wanted.items() if getattr(loaded.data, key) != value}
    overrides = [*method, "data.name=pairs", f"data.path={folder}", *(f"data.{k}={v}" for k, v in changed.items())]
    return f"diffpo train {config} {' '.join(overrides)}"


def is_config(target: str) -> bool:
    """Whether a command's first argument is a config."""
    return target.endswith((".yaml", ".yml"))


def find_source(
    target: str, split: str | None = None, validation_split: str | None = None, limit: int | None = None
) -> Source:
    """The pairs that a command's first argument means: a config's data block, or a table and its splits."""
    import dataclasses

    if is_config(target):
        from diffpo.config.run import load_config

        source = load_config(target).data
    else:
        from diffpo.curate.inspect import guess_source

        source = guess_source(target, split or "train")
    changes = {"split": split, "validation_split": validation_split, "limit": limit}
    return dataclasses.replace(source, **{name: value for name, value in changes.items() if value is not None})


def quiet() -> None:
    """Hide what libraries say while loading; our own warnings are shown."""
    import logging

    from diffpo.compat import quiet_libraries

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    quiet_libraries()


def listed(outs: Sequence[Path], earlier: Collection[Path]) -> str:
    """Name what a command wrote; `earlier` are the files that were there before: nothing is replaced in silence."""
    return ", ".join(f"{out} (replaced an earlier file)" if out in earlier else str(out) for out in outs)


def say(what: str, next_command: str) -> None:
    """End a command: what it wrote, and what to run next; of several processes only the first one speaks."""
    import os

    if os.environ.get("RANK", "0") == "0":
        print(f"{what}\nnext: {next_command}")
