"""The commands `diffpo data ...` that label pair tables: score, agreement, caption, perturb."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from diffpo.commands.shared import listed, quiet, say
from diffpo.commands.tables import YAML, Columns, FreshTable, Limit, Out, Split, Target, ValidationSplit, find_source

DCPO = ("configs/shapes-dcpo.yaml", "configs/sd21-dcpo.yaml")
"""What to train with on captions of the shapes world, and on others."""


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
