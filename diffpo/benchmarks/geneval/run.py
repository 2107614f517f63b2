"""GenEval on a media folder: `geneval.json` beside the images, each image and task right or wrong, with reasons.

Whether an image passed also becomes a score, 1 or 0, so that `diffpo compare` compares models by it, prompt by prompt.

What was judged before is not judged again, as long as the image, the task, the eyes and the rules stay what they were.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffpo.benchmarks.geneval.decide import Rules, decide, keep
from diffpo.benchmarks.geneval.tasks import GENEVAL_TASKS, ColorNamer, Detector, Task
from diffpo.disk.ahead import chunks
from diffpo.disk.files import write_json
from diffpo.disk.progress import progress
from diffpo.errors import UserError
from diffpo.media.folder import SCORES, Media, decode_file, read_file, read_media
from diffpo.media.prompts import read_prompts
from diffpo.scorers.scores import ScoreRow, ScoreTable, read_scores, write_scores

if TYPE_CHECKING:
    from rich.console import Console

GENEVAL = "geneval.json"
SCORER = "geneval"
_CHUNK = 32
_SAVE_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One image and one task."""

    file: str
    prompt: str
    prompt_id: int
    seed: int
    model: str
    tag: str
    correct: bool
    reasons: tuple[str, ...]
    """Why not; empty if it is right."""
    digest: str
    """Of the image file."""
    task: str
    """Digest of what was asked."""


@dataclass(frozen=True)
class TaskScore:
    """How many images were right in one task."""

    correct: int
    total: int

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.correct / self.total


@dataclass(frozen=True)
class GenEvalResult:
    """All that was judged in a folder, and by what."""

    judged: list[Judged]
    provenance: dict[str, Any]

    @property
    def tasks(self) -> dict[str, TaskScore]:
        """By task: GenEval's in the paper's order, then others."""
        by_tag: dict[str, list[bool]] = {tag: [] for tag in GENEVAL_TASKS}
        for item in self.judged:
            by_tag.setdefault(item.tag, []).append(item.correct)
        return {tag: TaskScore(sum(correct), len(correct)) for tag, correct in by_tag.items() if correct}

    @property
    def overall(self) -> float:
        """The plain mean of the tasks' shares, as the paper averages: a task counts the same, however many prompts."""
        shares = [score.share for score in self.tasks.values()]
        return sum(shares) / len(shares)

    def rows(self) -> list[ScoreRow]:
        """For comparisons: 1 for an image that passes all of its tasks, else 0, under the scorer `geneval`."""
        passed: dict[str, bool] = {}
        for item in self.judged:
            passed[item.file] = passed.get(item.file, True) and item.correct
        first = {item.file: item for item in reversed(self.judged)}
        return [
            ScoreRow(
                file=file,
                prompt=first[file].prompt,
                prompt_id=first[file].prompt_id,
                seed=first[file].seed,
                model=first[file].model,
                scorer=SCORER,
                score=float(correct),
                digest=first[file].digest,
            )
            for file, correct in passed.items()
        ]


def read_tasks(folder: str | Path) -> dict[str, list[Task]]:
    """The task of each prompt of a folder, from its `prompts.jsonl`.

    Raises:
        UserError: If there is none, or a prompt has no task.
    """
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
    media = [item for item in media if tasks[item.prompt]]
    if not media:
        raise UserError(f"no prompt of {folder} asks for anything that GenEval can judge.")
    provenance = {"detector": detector.provenance, "colors": colors.provenance, "rules": asdict(rules)}
    done = _read_earlier(folder / GENEVAL, provenance)
    rows: dict[tuple[str, str], Judged] = {}
    saved = time.monotonic()
    with progress("Judging", len(media), console=console) as advance:
        for chunk in chunks(media, _CHUNK):
            rows.update(_judge_chunk(folder, chunk, tasks, detector, colors, rules, done))
            advance(len(chunk))
            if time.monotonic() - saved > _SAVE_SECONDS:
                _write(folder, provenance, {**done, **rows}.values())
                saved = time.monotonic()
    _write(folder, provenance, rows.values())
    result = GenEvalResult(list(rows.values()), provenance)
    _add_scores(folder, result)
    return result


def read_geneval(folder: str | Path) -> GenEvalResult:
    """Read what `run_geneval` wrote.

    Raises:
        UserError: If there is none, or it is damaged.
    """
    path = Path(folder) / GENEVAL
    if not path.is_file():
        raise UserError(f"there is no {path}: this folder was not judged by GenEval yet.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        judged = [Judged(**{**item, "reasons": tuple(item["reasons"])}) for item in content["images"]]
        return GenEvalResult(judged, content["provenance"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete it and judge again.") from error


def _judge_chunk(
    folder: Path,
    chunk: Sequence[Media],
    tasks: Mapping[str, Sequence[Task]],
    detector: Detector,
    colors: ColorNamer,
    rules: Rules,
    done: Mapping[tuple[str, str], Judged],
) -> dict[tuple[str, str], Judged]:
    """Rows of a chunk by file and task: those in `done` that still hold, the others judged."""
    data = [read_file(folder, item) for item in chunk]
    digests = [hashlib.blake2b(content, digest_size=8).hexdigest() for content in data]
    rows: dict[tuple[str, str], Judged] = {}
    todo: list[int] = []
    for number, item in enumerate(chunk):
        for task in tasks[item.prompt]:
            earlier = done.get((item.file, _digest(task)))
            if earlier and (earlier.digest, earlier.prompt) == (digests[number], item.prompt):
                rows[item.file, _digest(task)] = _judged(item, task, earlier.correct, earlier.reasons, digests[number])
        if any((item.file, _digest(task)) not in rows for task in tasks[item.prompt]):
            todo.append(number)
    images = [decode_file(data[number], folder / chunk[number].file) for number in todo]
    seen = detector.detect(images, min(rules.threshold, rules.counting_threshold)) if images else []
    for number, image, objects in zip(todo, images, seen, strict=True):
        item = chunk[number]
        for task in tasks[item.prompt]:
            if (item.file, _digest(task)) not in rows:
                kept = keep(objects, task.tag, rules)
                decision = decide(kept, task, partial(colors.name_colors, image), rules)
                rows[item.file, _digest(task)] = _judged(
                    item, task, decision.correct, decision.reasons, digests[number]
                )
    ordered = [(item.file, _digest(task)) for item in chunk for task in tasks[item.prompt]]
    return {key: rows[key] for key in ordered}


def _judged(item: Media, task: Task, correct: bool, reasons: tuple[str, ...], digest: str) -> Judged:
    return Judged(
        file=item.file,
        prompt=item.prompt,
        prompt_id=item.prompt_id,
        seed=item.seed,
        model=item.model,
        tag=task.tag,
        correct=correct,
        reasons=reasons,
        digest=digest,
        task=_digest(task),
    )


def _digest(task: Task) -> str:
    return hashlib.blake2b(json.dumps(asdict(task)).encode(), digest_size=8).hexdigest()


def _read_earlier(path: Path, provenance: dict[str, Any]) -> dict[tuple[str, str], Judged]:
    """What was judged before by the same eyes and rules."""
    if not path.is_file():
        return {}
    earlier = read_geneval(path.parent)
    same = earlier.provenance == json.loads(json.dumps(provenance))
    return {(item.file, item.task): item for item in earlier.judged} if same else {}


def _add_scores(folder: Path, result: GenEvalResult) -> None:
    """Let `compare` see who passed: beside what other scorers said."""
    path = folder / SCORES
    earlier = read_scores(folder) if path.is_file() else ScoreTable([])
    others = [row for row in earlier.rows if row.scorer != SCORER]
    record = {"scorer": SCORER, "about": "Whether the image shows all that its prompt asks for.", **result.provenance}
    write_scores(path, ScoreTable([*others, *result.rows()], {**earlier.provenance, SCORER: record}))


def _write(folder: Path, provenance: dict[str, Any], judged: Any) -> None:
    write_json(folder / GENEVAL, {"provenance": provenance, "images": [asdict(item) for item in judged]})
