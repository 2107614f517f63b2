"""What `diffpo geneval` does: choose the eyes, judge media folders, print a table of the tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from diffpo.benchmarks.geneval.detectors import ClipColors, Mask2Former
from diffpo.benchmarks.geneval.run import GenEvalResult, Judged, read_tasks, run_geneval
from diffpo.benchmarks.geneval.shapes import ShapesEyes, shapes_tasks
from diffpo.benchmarks.geneval.tasks import ColorNamer, Detector, Task
from diffpo.compare.numbers import percent
from diffpo.compare.stats import per_prompt_means, share_interval
from diffpo.media.folder import read_media
from diffpo.media.prompts import load_prompts, read_prompts

if TYPE_CHECKING:
    from rich.table import Table

DETECTORS: dict[str, type[Mask2Former] | type[ShapesEyes]] = {"mask2former": Mask2Former, "shapes": ShapesEyes}


def run_geneval_command(
    folders: Sequence[Path],
    detector: str,
    colors: str | None,
    *,
    prompts: str | None = None,
    console: Console | None = None,
) -> list[GenEvalResult]:
    """Judge folders and print each one's table.

    Args:
        folders: Media folders.
        detector: `mask2former`, `shapes`, with options behind commas.
        colors: `clip` with options, as the scorer of that name takes them; None: what GenEval uses, or the shapes
            world's own eyes where those detect.
        prompts: A prompt set that says what is asked for, for folders that do not: `geneval`, or a file of its lines.
        console: Where the tables go; standard output by default.

    Raises:
        UserError: As `run_geneval`; or if an option is unknown.
    """
    console = console or Console()
    eyes, namer = make_eyes(detector, colors)
    known = tasks_of_set(prompts) if prompts else None
    results = []
    for folder in folders:
        result = run_geneval(folder, known or tasks_of(folder, eyes), eyes, namer)
        console.print(geneval_table(str(folder), result))
        results.append(result)
    return results


def make_eyes(detector: str, colors: str | None) -> tuple[Detector, ColorNamer]:
    """Make a detector and a namer of colours from what the user gave.

    Raises:
        UserError: If a name or an option is unknown.
    """
    from diffpo.config.options import from_spec
    from diffpo.scorers.clip import Clip

    eyes = from_spec(detector, DETECTORS, "detector")
    if colors is not None:
        return eyes, ClipColors(clip=from_spec(colors, {"clip": Clip}, "namer of colours"))
    return eyes, eyes if isinstance(eyes, ShapesEyes) else ClipColors()


def tasks_of(folder: Path, detector: Detector) -> dict[str, list[Task]]:
    """What each prompt of a folder asks for: what the folder says; else what a caption of the shapes world says itself.

    Raises:
        UserError: If nobody says it.
    """
    if isinstance(detector, ShapesEyes) and not any("include" in record for record in read_prompts(folder).values()):
        return {item.prompt: shapes_tasks(item.prompt) for item in read_media(folder)}
    return read_tasks(folder)


def tasks_of_set(spec: str) -> dict[str, list[Task]]:
    """What each prompt of a prompt set asks for.

    Raises:
        UserError: If there is no such set, or it does not say it.
    """
    found = load_prompts(spec)
    details = found.details or ({},) * len(found)
    return {
        prompt: [Task.parse({**detail, "prompt": prompt})]
        for prompt, detail in zip(found.prompts, details, strict=True)
    }


def geneval_table(title: str, result: GenEvalResult) -> Table:
    """One row per task, with its interval over prompts, and their plain mean."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), box=box.SIMPLE_HEAD, show_footer=True)
    table.add_column("task", footer="overall: mean of the tasks")
    table.add_column("right", justify="right", footer="")
    table.add_column("share", justify="right", footer=percent(result.overall))
    table.add_column("95% interval", justify="right", footer="")
    for tag, judged in result.tasks.items():
        low, high = _interval(judged)
        right, total = sum(item.correct for item in judged), len(judged)
        table.add_row(tag, f"{right}/{total}", percent(right / total), f"{percent(low)} to {percent(high)}")
    return table


def _interval(judged: Sequence[Judged]) -> tuple[float, float]:
    """Of a task's share, over prompts: images of one prompt are not independent."""
    return share_interval(per_prompt_means([item.correct for item in judged], [item.prompt for item in judged]))
