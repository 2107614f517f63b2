"""What `diffpo geneval` does: choose the eyes, judge media folders, print a table of the tasks."""

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from diffpo.benchmarks.geneval import DETECTORS
from diffpo.benchmarks.geneval.detectors import ClipColors
from diffpo.benchmarks.geneval.run import GenEvalResult, Judgement, read_tasks, run_geneval
from diffpo.benchmarks.geneval.shapes import ShapesEyes, shapes_tasks
from diffpo.benchmarks.geneval.tasks import ColorNamer, Detector, Task
from diffpo.compare.numbers import percent
from diffpo.compare.stats import per_prompt_means, share_interval
from diffpo.config.options import from_spec
from diffpo.media.folder import read_media
from diffpo.media.prompts import load_prompts, read_prompts
from diffpo.scorers.clip import Clip


def run_geneval_command(
    folders: Sequence[Path], detector: str, colors: str | None, prompts: str | None = None
) -> list[GenEvalResult]:
    """Judge media folders and print each one's table; see `diffpo geneval --help` for what is given."""
    eyes, namer = make_eyes(detector, colors)
    known = None
    if prompts:
        found = load_prompts(prompts)
        details = zip(found.prompts, found.details or ({},) * len(found), strict=True)
        known = {prompt: [Task.parse({**detail, "prompt": prompt})] for prompt, detail in details}
    results = []
    for folder in folders:
        results.append(run_geneval(folder, known or _tasks_of(folder, eyes), eyes, namer))
        Console().print(_table(str(folder), results[-1]))
    return results


def make_eyes(detector: str, colors: str | None) -> tuple[Detector, ColorNamer]:
    """Make a detector and a namer of colours, GenEval's by default; where the shapes world's eyes detect, those."""
    eyes = from_spec(detector, DETECTORS, "detector")
    if colors is not None:
        return eyes, ClipColors(clip=from_spec(colors, {"clip": Clip}, "namer of colours"))
    return eyes, eyes if isinstance(eyes, ShapesEyes) else ClipColors()


def _tasks_of(folder: Path, detector: Detector) -> dict[str, list[Task]]:
    """What each prompt of a folder asks for: what the folder says; else what a caption of the shapes world says."""
    if isinstance(detector, ShapesEyes) and not any("include" in record for record in read_prompts(folder).values()):
        return {item.prompt: shapes_tasks(item.prompt) for item in read_media(folder)}
    return read_tasks(folder)


def _interval(judged: Sequence[Judgement]) -> tuple[float, float]:
    """Of a task's share, over prompts: images of one prompt are not independent."""
    return share_interval(per_prompt_means([item.correct for item in judged], [item.prompt for item in judged]))


def _table(title: str, result: GenEvalResult) -> Table:
    """One row per task, with its interval over prompts, and their plain mean."""
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
