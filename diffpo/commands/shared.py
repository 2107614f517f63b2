"""What commands share: options that several have, and what is said at the end."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[str, typer.Argument(help="A YAML file, such as configs/shapes-dpo.yaml.", show_default=False)]
Folders = Annotated[list[Path], typer.Argument(help="Media folders, the baseline first.", show_default=False)]
Fresh = Annotated[bool, typer.Option("--fresh", help="Remove what an earlier call wrote there, and begin anew.")]
Baseline = Annotated[str | None, typer.Option(help="Label of what is compared with; the first by default.")]
Category = Annotated[
    str | None, typer.Option(help="A prompt set that says each prompt's category; else the folders' own.")
]
Human = Annotated[
    Path | None, typer.Option(help="CSV of votes: model_a, model_b, prompt, choice (a, b, tie), user_id.")
]
UsedInTraining = Annotated[
    list[str] | None, typer.Option(help="A scorer that trained or selected a model; what runs tell is known.")
]


def quiet() -> None:
    """Hide what libraries say while loading; our own warnings are shown."""
    import logging

    from diffpo.compat import quiet_libraries

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    quiet_libraries()


def listed(*outs: Path) -> str:
    """Name what a command is about to write; nothing that is there is replaced in silence."""
    return ", ".join(f"{out} (replaced an earlier file)" if out.exists() else str(out) for out in outs)


def say(what: str, next_command: str) -> None:
    """End a command: what it wrote, and what to run next; of several processes only the first one speaks."""
    import os

    if os.environ.get("RANK", "0") == "0":
        print(f"{what}\nnext: {next_command}")


def read_categories(spec: str | None) -> dict[str, str] | None:
    """Prompt -> category of a prompt set; None where none is given."""
    from diffpo.errors import UserError
    from diffpo.media.prompts import load_prompts

    if not spec:
        return None
    prompts = load_prompts(spec)
    found = {prompt: name for prompt, name in zip(prompts.prompts, prompts.categories, strict=True) if name}
    if not found:
        raise UserError(f"{spec} names no category of any prompt: give a table with a column `category`.")
    return found


def compare_command(sources: Sequence[Path], options: str = "") -> str:
    """What follows scores: to compare them where there are several models, else to score another one."""
    several = len(sources) > 1
    if not several:
        from diffpo.compare.evidence import read_evidence

        several = len(read_evidence(sources, None).models) > 1
    return f"diffpo compare {' '.join(map(str, sources))}{'' if several else ' ANOTHER'}{options}"
