"""The commands `diffpo data ...` that label pair tables: score, agreement, caption, perturb."""

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
    is_config,
)


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
    from diffpo.config.options import make_scorer, validated
    from diffpo.curate.labels import Labelling

    given = {"normalise": normalise, "quantiles": quantiles, "temperature": temperature, "order": order}
    labelling, made = validated(Labelling, given, "score"), make_scorer(scorer)
    quiet()
    from diffpo.curate.score import score_pairs

    source = find_source(target, split, validation_split, limit, columns)
    done = score_pairs(source, made, out, labelling, batch=batch, fresh=fresh)
    example = "configs/shapes-smpo.yaml" if target == "shapes:pairs" else "configs/sd15-smpo.yaml"
    say(
        f"wrote {', '.join(map(str, done.files))}: {done}; how it was made: {out}/train.provenance.json",
        training_command(target, example, out, validation=len(done.files) > 1),
    )


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

    from diffpo.config.options import make_scorer, validated

    made = [make_scorer(spec) for spec in scorer]
    quiet()
    from rich.console import Console

    from diffpo.curate.agreement import Counting, agreement, agreement_table
    from diffpo.disk.files import check_output, without_nan, write_json

    check_output(out)
    earlier = [out] if out.exists() else []
    counting = validated(Counting, {"tie_threshold": tie_threshold}, "agreement")
    found_source = find_source(target, split, limit=limit, columns=columns)
    source = validated(type(found_source), dataclasses.asdict(found_source) | {"ties": ties}, "agreement")
    found = agreement(source, made, counting, batch=batch)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, without_nan(dataclasses.asdict(found)))
    Console().print(agreement_table(found))
    broken = f"; {len(found.broken)} pairs with a broken image are left out" if found.broken else ""
    best = max(found.scorers, key=lambda row: row.agreement).scorer
    spec = next(spec for spec, each in zip(scorer, made, strict=True) if each.name == best)
    say(
        f"wrote {listed([out], earlier)}{broken}",
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
    from diffpo.config.options import make_captioner

    made = make_captioner(captioner)
    quiet()
    from diffpo.curate.caption import caption_pairs

    files = caption_pairs(find_source(target, split, validation_split, limit, columns), made, out, fresh=fresh)
    example = "configs/shapes-dcpo.yaml" if made.name == "shapes" else "configs/sd21-dcpo.yaml"
    perturber = "shapes" if made.name == "shapes" else "dipper"
    say(
        f"wrote {', '.join(map(str, files))}; how it was made: {out}/train.provenance.json\n"
        f"for DCPO-h: diffpo data perturb {out} --perturber {perturber} --preset hybrid --out {out}-hybrid",
        training_command(target, example, out, validation=len(files) > 1),
    )


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
    from diffpo.config.options import make_perturber
    from diffpo.curate.caption import perturb_pairs, read_preset

    made, wanted = make_perturber(perturber), read_preset(preset)
    quiet()
    files = perturb_pairs(find_source(target, split, validation_split, limit, columns), made, out, wanted, fresh=fresh)
    example = "configs/shapes-dcpo.yaml" if made.name == "shapes" else "configs/sd21-dcpo.yaml"
    say(
        f"wrote {', '.join(map(str, files))}; how it was made: {out}/train.provenance.json",
        training_command(target, example, out, validation=len(files) > 1),
    )


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
