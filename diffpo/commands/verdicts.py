"""The commands that compare models and show the result: evaluate, compare, grid, report."""

from pathlib import Path
from typing import Annotated

import typer

from diffpo.commands.shared import (
    Baseline,
    Category,
    Config,
    Folders,
    Human,
    UsedInTraining,
    listed,
    quiet,
    read_categories,
    say,
)


def evaluate(
    config: Config,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Such as sampling.steps=20, or models.mine=runs/x.", show_default=False)
    ] = None,
) -> None:
    """Judge models: generate, score, compare, report; the same command continues, and makes only what is missing."""
    from diffpo.config.evaluation import load_evaluation

    loaded = load_evaluation(config, overrides or [])
    quiet()
    from diffpo.commands.evaluate import evaluate as run

    done = run(loaded)
    out = done.folder
    say(
        f"wrote {out}/report.html, {out}/comparison.json (.csv, .tex), {out}/grid.png: {done.images} images, "
        f"{done.made} of them made now",
        f"open {out}/report.html in a browser",
    )


def compare(
    folders: Annotated[list[Path] | None, typer.Argument(help="Media folders, the baseline first.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Label of the model; several are ranked; all by default.")
    ] = None,
    baseline: Baseline = None,
    scorer: Annotated[list[str] | None, typer.Option("--scorer", "-s", help="Which scorers; all by default.")] = None,
    mode: Annotated[
        str, typer.Option(help="same-seed, all-pairs, median-image, best-of-n or mean-over-seeds.")
    ] = "same-seed",
    chosen_by: Annotated[str | None, typer.Option(help="Scorer that chooses the median or the best image.")] = None,
    category: Category = None,
    human: Human = None,
    used_in_training: UsedInTraining = None,
    out: Annotated[list[Path] | None, typer.Option(help="A .json, .csv or .tex; may be repeated.")] = None,
) -> None:
    """Compare scored models prompt by prompt, with intervals; more than two are ranked as well."""
    from rich.console import Console

    from diffpo.compare.compare import Judging
    from diffpo.compare.compare import compare as compare_models
    from diffpo.compare.export import check_outs, write_result
    from diffpo.compare.terminal import print_result

    outs, sources = out or [Path("comparison.json")], folders or []
    written = listed(*outs)
    judging = Judging(
        mode=mode,  # pyright: ignore[reportArgumentType]
        chosen_by=chosen_by,
        used_in_training=tuple(used_in_training or ()),
        categories=read_categories(category),
    )
    check_outs(outs)
    found = compare_models(
        sources, models=model or [], baseline=baseline, scorers=scorer or None, votes=human, judging=judging
    )
    print_result(found, Console())
    for path in outs:
        write_result(path, found)
    say(f"wrote {written}", f"diffpo report {' '.join(map(str, sources or ['MEDIA', 'MEDIA']))}")


def grid(
    folders: Folders,
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("grid.png"),
    prompts: Annotated[int, typer.Option(help="Rows.", min=1)] = 6,
    seeds: Annotated[int, typer.Option(help="Images per prompt and model.", min=1)] = 1,
    scorer: Annotated[str | None, typer.Option("--scorer", "-s", help="Write its score below each image.")] = None,
    shuffle: Annotated[
        int | None, typer.Option(help="Draw prompts at random with this seed, not the first ones.", min=0)
    ] = None,
) -> None:
    """Draw models side by side: rows are prompts, columns are models."""
    from diffpo.report.grid import write_grid

    written = listed(out, out.with_suffix(".json"))
    write_grid(out, folders, prompts=prompts, seeds=seeds, scorer=scorer, shuffle=shuffle)
    say(f"wrote {written}", f"open {out}")


def report(
    folders: Folders,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    run: Annotated[
        list[Path] | None, typer.Option(help="Run folder of diffpo train, for curves and config; may be repeated.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading.")] = None,
    baseline: Baseline = None,
    scorer: Annotated[
        list[str] | None, typer.Option("--scorer", "-s", help="Which, the first for the headline; all by default.")
    ] = None,
    category: Category = None,
    human: Human = None,
    used_in_training: UsedInTraining = None,
) -> None:
    """Write one self-contained HTML file about scored models: two, or many, which are ranked."""
    from diffpo.compare.compare import Judging
    from diffpo.compare.compare import compare as compare_models
    from diffpo.disk.files import check_output
    from diffpo.report.page import write_report

    categories = read_categories(category)
    judging = Judging(used_in_training=tuple(used_in_training or ()), categories=categories)
    check_output(out)
    found = compare_models(folders, baseline=baseline, scorers=scorer or None, votes=human, judging=judging)
    written = listed(out)
    write_report(out, found, folders, run=run, title=title, categories=categories)
    say(f"wrote {written}", f"open {out} in a browser")
