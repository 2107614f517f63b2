"""GenEval on a media folder: `geneval.json` beside the images, each image and task right or wrong, with reasons.

Whether an image passed also becomes a score, 1 or 0, so that `diffpo compare` compares models by it, prompt by prompt.

What was judged before is not judged again, as long as the image, the task, the eyes and the rules stay what they were.
A clip is judged by its first frame.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from rich.console import Console

from diffpo.benchmarks.geneval.decide import Rules, decide, keep
from diffpo.benchmarks.geneval.tasks import ColorNamer, Detector, Task
from diffpo.disk.files import hash_of, write_json
from diffpo.disk.lock import sole_writer
from diffpo.disk.rows import Row, RowStore
from diffpo.errors import UserError
from diffpo.media.folder import Media, read_media
from diffpo.media.frames import Clip
from diffpo.media.prompt_sets import GENEVAL_TASKS
from diffpo.media.prompts import read_prompts
from diffpo.scorers.judging import Judge, judge_media, key_of
from diffpo.scorers.scores import WAIT, ScoreRow, merge_scores

GENEVAL = "geneval.json"
SCORER = "geneval"
COMMAND = "diffpo geneval"
FORMAT = 1
"""Raise it when the meaning of kept judgements changes."""


@dataclass(frozen=True, kw_only=True)
class Judgement(Media):
    """One image and one task."""

    tag: str
    correct: bool
    reasons: tuple[str, ...]
    """Why not; empty if it is right."""
    digest: str
    """Of the image file."""
    task: str
    """Digest of what was asked."""


@dataclass(frozen=True)
class GenEvalResult:
    """All that was judged in a folder, and by what."""

    judged: list[Judgement]
    provenance: dict[str, Any]

    @property
    def tasks(self) -> dict[str, list[Judgement]]:
        """By task: GenEval's in the paper's order, then others."""
        found: dict[str, list[Judgement]] = {tag: [] for tag in GENEVAL_TASKS}
        for item in self.judged:
            found.setdefault(item.tag, []).append(item)
        return {tag: judged for tag, judged in found.items() if judged}

    @cached_property
    def images(self) -> dict[str, list[Judgement]]:
        """By file: an image is judged once for each of its tasks."""
        found: dict[str, list[Judgement]] = {}
        for item in self.judged:
            found.setdefault(item.file, []).append(item)
        return found

    @property
    def overall(self) -> float:
        """The plain mean of the tasks' shares, as the paper averages: a task counts the same, however many prompts."""
        shares = [sum(item.correct for item in judged) / len(judged) for judged in self.tasks.values()]
        return sum(shares) / len(shares)

    def rows(self, media: Sequence[Media]) -> list[ScoreRow]:
        """For comparisons: 1 for an image that passes all of its tasks, else 0, under the scorer `geneval`."""
        marks = {file: (float(all(one.correct for one in own)), own[0].digest) for file, own in self.images.items()}
        return [ScoreRow.of(item, SCORER, *marks[item.file]) for item in media if item.file in marks]


def read_tasks(folder: str | Path) -> dict[str, list[Task]]:
    """The task of each prompt of a folder, from its `prompts.jsonl`."""
    known = read_prompts(folder)
    if not known:
        raise UserError(
            f"{folder} does not say what its prompts ask for. Generate it from the prompt set `geneval` (or your copy "
            "of evaluation_metadata.jsonl), or name the set: --prompts geneval."
        )
    return {prompt: [Task.parse({**detail, "prompt": prompt})] for prompt, detail in known.items()}


def run_geneval(
    folder: str | Path,
    tasks: Mapping[str, Sequence[Task]],
    detector: Detector,
    colors: ColorNamer,
    *,
    rules: Rules | None = None,
    console: Console | None = None,
) -> GenEvalResult:
    """Judge a media folder, write its `geneval.json`, and add the scorer `geneval` to its score table.

    Args:
        folder: A media folder.
        tasks: By prompt; see `read_tasks`. An image of several tasks is looked at once.
        detector: What finds objects.
        colors: What names their colours.
        rules: GenEval's by default.
        console: Where to show progress; standard error by default.

    Raises:
        UserError: If a prompt has no entry in `tasks`, no image has a task, or an image or the weights are missing or
            broken.
    """
    folder, rules = Path(folder), rules or Rules()
    media = read_media(folder)
    unknown = next((item for item in media if item.prompt not in tasks), None)
    if unknown:
        raise UserError(f"{unknown.file} in {folder}: nothing is known of what {unknown.prompt!r} asks for.")
    asked = [item for item in media if tasks[item.prompt]]
    if not asked:
        raise UserError(f"no prompt of {folder} asks for anything that GenEval can judge.")
    provenance = {"detector": detector.provenance, "colors": colors.provenance, "rules": asdict(rules)}
    judge = Judge(
        RowStore("geneval", {"format": FORMAT, **provenance}),
        partial(_look, tasks=tasks, detector=detector, colors=colors, rules=rules),
        lambda item: _question(tasks[item.prompt]),
        _known(folder / GENEVAL, provenance, asked, tasks),
    )
    with sole_writer(folder / GENEVAL, COMMAND, wait=WAIT):
        pass  # a place that cannot be written is missed before the work
    found = judge_media(folder, asked, [judge], "Judging", console=console)
    if found.left_out:
        raise UserError(next(iter(found.left_out.values())))
    judged = []
    for item in asked:
        content = found.contents[item.file]
        decisions = judge[judge.key(content, item)].values["decisions"]
        for task, (correct, reasons) in zip(tasks[item.prompt], decisions, strict=True):
            said = {"tag": task.tag, "correct": correct, "reasons": tuple(reasons), "task": _digest(task)}
            judged.append(Judgement(**asdict(item), **said, digest=content))
    result = GenEvalResult(judged, provenance)
    with sole_writer(folder / GENEVAL, COMMAND, wait=WAIT):
        write_json(folder / GENEVAL, {"provenance": provenance, "images": [asdict(item) for item in judged]})
    record = {"scorer": SCORER, "about": "Whether the image shows all that its prompt asks for.", **provenance}
    merge_scores(folder, media, found.contents, result.rows(media), {SCORER: record})
    return result


def read_geneval(folder: str | Path) -> GenEvalResult:
    """Read what `run_geneval` wrote."""
    path = Path(folder) / GENEVAL
    if not path.is_file():
        raise UserError(f"there is no {path}: this folder was not judged by GenEval yet.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        judged = [Judgement(**{**item, "reasons": tuple(item["reasons"])}) for item in content["images"]]
        return GenEvalResult(judged, content["provenance"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete it and judge again.") from error


def _look(
    clips: Sequence[Clip],
    media: Sequence[Media],
    *,
    tasks: Mapping[str, Sequence[Task]],
    detector: Detector,
    colors: ColorNamer,
    rules: Rules,
) -> Iterator[Row]:
    """Judge the first frame of each clip by all that its prompt asks for; it is looked at once."""
    images = [clip.first for clip in clips]
    seen = detector.detect(images, min(rules.threshold, rules.counting_threshold))
    for image, item, objects in zip(images, media, seen, strict=True):
        name = partial(colors.name_colors, image)
        made = [decide(keep(objects, task.tag, rules), task, name, rules) for task in tasks[item.prompt]]
        yield Row({"decisions": [[not reasons, reasons] for reasons in made]})


def _digest(task: Task) -> str:
    return hash_of(json.dumps(asdict(task)))


def _question(tasks: Sequence[Task]) -> str:
    return json.dumps([asdict(task) for task in tasks])


def _known(
    path: Path, provenance: dict[str, Any], media: Sequence[Media], tasks: Mapping[str, Sequence[Task]]
) -> dict[bytes, Row]:
    """What the folder says of earlier judgements by the same eyes and rules, by the key of `Judge`."""
    earlier = read_geneval(path.parent) if path.is_file() else GenEvalResult([], {})
    images = earlier.images if earlier.provenance == json.loads(json.dumps(provenance)) else {}
    known = {}
    for item in media:
        found, asked = images.get(item.file, []), tasks[item.prompt]
        if found and [one.task for one in found] == [_digest(task) for task in asked]:
            row = Row({"decisions": [[one.correct, one.reasons] for one in found]})
            known[key_of(found[0].digest, item.frames, _question(asked))] = row
    return known
