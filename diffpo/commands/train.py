"""The commands that train: one run, or the demonstration."""

from pathlib import Path
from typing import Annotated

import typer

from diffpo.commands.shared import Config, Fresh, quiet, say
from diffpo.commands.users import told


def train(
    config: Config,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Such as method.beta=2000, or method=sft.", show_default=False)
    ] = None,
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
    sample = loaded.sample
    made = {"size": sample.size and "{}x{}".format(*sample.size), "frames": sample.frames, "fps": sample.fps}
    how = "".join(f" --{name} {value}" for name, value in made.items() if value is not None)
    prompts = sample.prompts if isinstance(sample.prompts, str) else "PROMPTS.txt"
    say(
        f"wrote {folder}/final, {folder}/metrics.jsonl",
        f"diffpo generate {loaded.model.path}{start} --tuned {folder} --prompts {prompts}{how} --out media/tuned",
    )


def demo(
    output: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of the training.", min=0, max=2**63 - 1)] = 0,
    prompts: Annotated[
        int | None,
        typer.Option(
            help="Held-out prompts to judge: 200, of clips 61, of each user 16, unless given.",
            min=1,
            show_default=False,
        ),
    ] = None,
    video: Annotated[bool, typer.Option("--video", help="DenseDPO on clips of moving shapes.")] = False,
    personal: Annotated[
        bool, typer.Option("--personal", help="PPD: a model that is told whom images are for.")
    ] = False,
    fresh: Fresh = False,
) -> None:
    """Run it all on the embedded shapes world: train, generate, score, compare, report."""
    from diffpo.errors import UserError

    if video and personal:
        raise UserError("--video and --personal are two demonstrations: give one of them.")
    quiet()
    if personal:
        from diffpo.commands.demo_users import run_users_demo

        summary = run_users_demo(output, seed=seed, prompts=prompts, fresh=fresh)
        for line in told(summary):
            print(line)
    else:
        from diffpo.commands.demo import MOVING, SHAPES, run_demo

        summary = run_demo(output, MOVING if video else SHAPES, seed=seed, prompts=prompts, fresh=fresh)
    say(f"wrote {output}/summary.json, {output}/report.html", f"open {output}/report.html in a browser")
    print(f"win rate {summary['win_rate']:.3f} [{summary['ci_low']:.3f}, {summary['ci_high']:.3f}]")
