"""The commands that make images and judge them: generate, score, compare and what is drawn of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffpo.commands.data import listed, quiet, say

judging = typer.Typer()

Folders = Annotated[list[Path], typer.Argument(help="Media folders, the baseline first.", show_default=False)]
ScorerNames = Annotated[
    list[str],
    typer.Option("--scorer", "-s", help="A scorer; with options: pickscore,path=FOLDER,scale=cosine. May be repeated."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Remove what an earlier call wrote there, and begin anew.")]


@judging.command()
def evaluate(
    config: Annotated[str, typer.Argument(help="A YAML file, such as configs/eval-shapes.yaml.", show_default=False)],
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


@judging.command()
def generate(
    model: Annotated[str, typer.Argument(help="A diffusers folder, a Hub id, or shapes:base.", show_default=False)],
    prompts: Annotated[str, typer.Option(help="A file of prompts, or a named set such as shapes:heldout:200.")],
    out: Annotated[Path, typer.Option(help="The media folder to write.")],
    tuned: Annotated[str | None, typer.Option(help="A run of diffpo train, or its final/.")] = None,
    lora: Annotated[str | None, typer.Option(help="A LoRA: folder, file or Hub id.")] = None,
    denoiser: Annotated[str | None, typer.Option(help="A fully tuned UNet or transformer: folder or Hub id.")] = None,
    label: Annotated[str | None, typer.Option(help="Name of the model in tables and grids.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds per prompt: 0,1,2 or a range 0-3.")] = "0",
    noise: Annotated[
        str,
        typer.Option(
            help="per-prompt: right for statistics; consecutive; shared: all prompts get the seeds as they are."
        ),
    ] = "per-prompt",
    distinct_seeds: Annotated[bool, typer.Option(help="The same as --noise consecutive.")] = False,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 50,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance scale.")] = 7.5,
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 4,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH in pixels; the model's own by default.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to guide away from.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    fresh: Fresh = False,
) -> None:
    """Make images of prompts; the same command continues after a kill. The safety checker is off."""
    from diffpo.config.options import parse_seeds, parse_size, validated

    quiet()
    from diffpo.generation.generate import generate as run
    from diffpo.generation.settings import GenerateOptions
    from diffpo.media.prompts import load_prompts

    given = {"model": model, "tuned": tuned, "lora": lora, "denoiser": denoiser, "seeds": parse_seeds(seeds)}
    given |= {"noise": "consecutive" if distinct_seeds else noise, "steps": steps, "guidance": guidance, "batch": batch}
    given |= {"size": parse_size(size), "negative_prompt": negative_prompt, "dtype": dtype, "device": device}
    done = run(validated(GenerateOptions, given, "generate"), load_prompts(prompts), out, label=label, fresh=fresh)
    say(f"wrote {done.images} images to {out} ({done.reused} were there)", f"diffpo score {out} --scorer pickscore")


@judging.command()
def score(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Media folders; or any folders of images with prompts, or tables of paths and prompts.",
            show_default=False,
        ),
    ],
    scorers: ScorerNames,
) -> None:
    """Score images, whoever made them; what was scored before is kept."""
    from diffpo.config.options import make_scorer

    made = [make_scorer(name) for name in scorers]
    quiet()
    from diffpo.media.folder import scores_file
    from diffpo.scorers.scores import score_folder

    for folder in folders:
        score_folder(folder, made)
    sources = [folder if folder.is_dir() else scores_file(folder) for folder in folders]
    say(
        f"wrote {', '.join(str(scores_file(folder)) for folder in folders)}",
        f"diffpo compare {' '.join(map(str, sources))}",
    )


@judging.command()
def geneval(
    folders: Annotated[list[Path], typer.Argument(help="Media folders.", show_default=False)],
    detector: Annotated[str, typer.Option(help="mask2former (path=FOLDER, batch=8) or shapes.")] = "mask2former",
    colors: Annotated[
        str | None, typer.Option(help="A CLIP that names colours: clip,model=FOLDER; GenEval's by default.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="What is asked for, if the folders do not say: geneval, or a file of its lines.")
    ] = None,
) -> None:
    """Judge by GenEval whether images show the objects, counts, colours and positions that their prompts ask for."""
    quiet()
    from diffpo.commands.geneval import run_geneval_command

    run_geneval_command(folders, detector, colors, prompts=prompts)
    paths = " ".join(map(str, folders))
    say(f"wrote {', '.join(f'{folder}/geneval.json' for folder in folders)}", f"diffpo compare {paths} -s geneval")


@judging.command("set-metrics")
def set_metrics(
    folders: Folders,
    features: Annotated[
        list[str] | None, typer.Option(help="clip (model=FOLDER) or inception (path=FILE); may be repeated.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="A folder of images that distances are to; else the baseline.")
    ] = None,
    limit: Annotated[float, typer.Option(help="Share of the baseline beyond which a drift is an alarm.")] = 0.1,
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = Path("sets.json"),
) -> None:
    """Measure FID, KID, diversity within a prompt, and alarms of over-optimisation."""
    quiet()
    from diffpo.commands.set_metrics import run_set_metrics

    earlier = [out] if out.exists() else []
    run_set_metrics(folders, features or ["clip"], reference=reference, limit=limit, out=out)
    say(f"wrote {listed([out], earlier)}", f"diffpo grid {' '.join(map(str, folders))}")


@judging.command()
def compare(
    folders: Annotated[list[Path] | None, typer.Argument(help="Media folders, the baseline first.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Label of the model; several are ranked; all by default.")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="Label of what is compared with; the first by default.")] = None,
    scorer: Annotated[list[str] | None, typer.Option("--scorer", "-s", help="Which scorers; all by default.")] = None,
    mode: Annotated[
        str, typer.Option(help="same-seed, all-pairs, median-image, best-of-n or mean-over-seeds.")
    ] = "same-seed",
    chosen_by: Annotated[str | None, typer.Option(help="Scorer that chooses the median or the best image.")] = None,
    category: Annotated[
        str | None, typer.Option(help="A prompt set that says each prompt's category; else the folders' own.")
    ] = None,
    human: Annotated[
        Path | None, typer.Option(help="CSV of votes: model_a, model_b, prompt, choice (a, b, tie), user_id.")
    ] = None,
    used_in_training: Annotated[
        list[str] | None, typer.Option(help="A scorer that trained or selected a model; what runs tell is known.")
    ] = None,
    out: Annotated[list[Path] | None, typer.Option(help="A .json, .csv or .tex; may be repeated.")] = None,
) -> None:
    """Compare scored models prompt by prompt, with intervals; more than two are ranked as well."""
    from diffpo.commands.compare import read_categories, run_compare
    from diffpo.compare.compare import Judging

    outs = out or [Path("comparison.json")]
    earlier = [out for out in outs if out.exists()]
    judging = Judging(
        mode=mode,  # pyright: ignore[reportArgumentType]
        chosen_by=chosen_by,
        used_in_training=tuple(used_in_training or ()),
        categories=read_categories(category) if category else None,
    )
    run_compare(
        folders or [],
        models=model or [],
        baseline=baseline,
        scorers=scorer or [],
        votes=human,
        judging=judging,
        outs=outs,
    )
    say(f"wrote {listed(outs, earlier)}", f"diffpo report {' '.join(map(str, folders or ['MEDIA', 'MEDIA']))}")


@judging.command()
def grid(
    folders: Folders,
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("grid.png"),
    prompts: Annotated[int, typer.Option(help="Rows.")] = 6,
    seeds: Annotated[int, typer.Option(help="Images per prompt and model.")] = 1,
    scorer: Annotated[str | None, typer.Option("--scorer", "-s", help="Write its score below each image.")] = None,
    shuffle: Annotated[
        int | None, typer.Option(help="Draw prompts at random with this seed, not the first ones.")
    ] = None,
) -> None:
    """Draw models side by side: rows are prompts, columns are models."""
    from diffpo.report.grid import write_grid

    outs = [out, out.with_suffix(".json")]
    earlier = [out for out in outs if out.exists()]
    write_grid(out, folders, prompts=prompts, seeds=seeds, scorer=scorer, shuffle=shuffle)
    say(f"wrote {listed(outs, earlier)}", f"open {out}")


@judging.command()
def report(
    folders: Folders,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    run: Annotated[
        list[Path] | None, typer.Option(help="Run folder of diffpo train, for curves and config; may be repeated.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading.")] = None,
    baseline: Annotated[str | None, typer.Option(help="Label of what is compared with; the first by default.")] = None,
    scorer: Annotated[
        list[str] | None, typer.Option("--scorer", "-s", help="Which, the first for the headline; all by default.")
    ] = None,
    category: Annotated[
        str | None, typer.Option(help="A prompt set that says each prompt's category; else the folders' own.")
    ] = None,
    human: Annotated[
        Path | None, typer.Option(help="CSV of votes: model_a, model_b, prompt, choice (a, b, tie), user_id.")
    ] = None,
    used_in_training: Annotated[
        list[str] | None, typer.Option(help="A scorer that trained or selected a model; what runs tell is known.")
    ] = None,
) -> None:
    """Write one self-contained HTML file about scored models: two, or many, which are ranked."""
    from diffpo.commands.compare import read_categories
    from diffpo.compare.compare import Judging
    from diffpo.compare.compare import compare as compare_models
    from diffpo.report.page import write_report

    categories = read_categories(category) if category else None
    judging = Judging(used_in_training=tuple(used_in_training or ()), categories=categories)
    found = compare_models(folders, baseline=baseline, scorers=scorer or None, votes=human, judging=judging)
    earlier = [out] if out.exists() else []
    write_report(out, found, folders, run=run, title=title, categories=categories)
    say(f"wrote {listed([out], earlier)}", f"open {out} in a browser")
