"""The commands. Each one is thin: read options, call one function, say what was written and what to run next.

Nothing heavy is imported before a command runs, so that every `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffpo.commands.data import data, quiet, say
from diffpo.commands.judge import Fresh, judging

app = typer.Typer(
    name="diffpo",
    help="Align diffusion models with preferences.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich doubles the time that --help takes
    epilog="Any command takes --debug, which shows the traceback of an error.",
)
app.add_typer(judging)
app.add_typer(data, name="data")

Overrides = Annotated[
    list[str] | None, typer.Argument(help="Such as method.beta=2000, or method=sft.", show_default=False)
]


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="A YAML file, such as configs/shapes-dpo.yaml.", show_default=False)],
    overrides: Overrides = None,
    fresh: Fresh = False,
    push: Annotated[str | None, typer.Option(help="Hub repository (owner/name) that gets the export.")] = None,
) -> None:
    """Train on preference pairs; the same command resumes a run."""
    from diffpo.config.run import load_config

    loaded = load_config(config, overrides or [])
    quiet()
    from diffpo.training.train import train as run

    folder = run(loaded, fresh=fresh, push=push)
    start = "" if loaded.model.denoiser is None or loaded.model.trains_base else f" --denoiser {loaded.model.denoiser}"
    say(
        f"wrote {folder}/final, {folder}/metrics.jsonl",
        f"diffpo generate {loaded.model.path}{start} --tuned {folder} --prompts PROMPTS.txt --out media/tuned",
    )


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    prompts: Annotated[int, typer.Option(help="Held-out prompts to judge.")] = 200,
    fresh: Fresh = False,
) -> None:
    """Run it all on the embedded shapes world: train, generate, score, compare, report."""
    quiet()
    from diffpo.commands.demo import run_demo

    summary = run_demo(output, seed=seed, prompts=prompts, fresh=fresh)
    say(f"wrote {output}/summary.json, {output}/report.html", f"open {output}/report.html in a browser")
    print(f"win rate {summary['win_rate']:.3f} [{summary['ci_low']:.3f}, {summary['ci_high']:.3f}]")


@app.command()
def methods() -> None:
    """List the methods, their settings and what columns they need."""
    from diffpo.config.options import describe_fields
    from diffpo.methods import METHODS

    for name, method in METHODS.items():
        print(f"{name}: {(method.__doc__ or '').strip().splitlines()[0]}")
        print(f"  needs {', '.join(sorted(method.requires)) or 'prompt, chosen, rejected'}")
        for line in describe_fields(method):
            print(f"  {line}")


@app.command()
def models() -> None:
    """List the families of models and how they can be tuned."""
    from diffpo.config.options import describe_fields
    from diffpo.models import FAMILIES
    from diffpo.models.tuning import MODELS

    for name, family in FAMILIES.items():
        print(f"{name}: {', '.join(family.pipelines)} ({', '.join(family.components)})")
    for name, tuning in MODELS.items():
        print(f"model.name={name}: {(tuning.__doc__ or '').strip().splitlines()[0]}")
        for line in describe_fields(tuning):
            print(f"  {line}")


@app.command()
def scorers() -> None:
    """List the scorers, their options and where their weights come from."""
    from diffpo.config.options import describe_fields
    from diffpo.scorers import SCORERS

    for name, scorer in SCORERS.items():
        print(f"{name}: {(scorer.__doc__ or '').strip().splitlines()[0]}")
        print(f"  weights: {scorer.origin}")
        for line in describe_fields(scorer):
            print(f"  {line}")


@app.command()
def env() -> None:
    """Print versions and devices: what to put into a bug report."""
    from diffpo.compat import describe_environment

    for key, value in describe_environment().items():
        print(f"{key:20} {value}")
