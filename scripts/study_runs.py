"""What the studies of the worlds share: a run that is trained and judged once, many of them at a time, and tables.

A run is a folder with `result.json` as its last file; those that are there are not run again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from diffpo.compare.stats import Estimate, WinRate

Scores = dict[str, list[float]]
"""Judge -> a score for each of the media, prompt by prompt and seed by seed."""


@dataclass(frozen=True)
class World:
    """How the media of a study are made, and what judges them."""

    model: str
    sampling: dict[str, Any]
    """Fields of `GenerateOptions`."""
    measure: Callable[[Path], Scores]
    """Judges a media folder."""
    headline: str
    """The judge whose mean is shown while runs end."""


@dataclass(frozen=True)
class Job:
    """One training, and its media judged on a set of prompts."""

    folder: str
    config: str
    overrides: tuple[str, ...]
    updates: int
    seed: int
    prompts: str
    """What is generated for; empty: nothing is, only the held-out errors are wanted."""
    pairs: int
    """Of an update."""
    eval_every: int
    """Updates between held-out errors."""

    @property
    def choice(self) -> str:
        """Its place among its variant's: for a trial, what was chosen."""
        return Path(self.folder).name

    @property
    def done(self) -> bool:
        """Whether its result is there."""
        return (Path(self.folder) / "result.json").exists()


def run(world: World, job: Job) -> Job:
    """Train, generate, judge, and write `result.json`."""
    import warnings

    warnings.filterwarnings("ignore")
    from diffpo.compat import quiet_libraries
    from diffpo.config.run import load_config
    from diffpo.disk.files import write_json
    from diffpo.training.train import train

    quiet_libraries()
    folder = Path(job.folder)
    own = [f"train.output={folder / 'run'}", f"train.seed={job.seed}", f"train.steps={job.updates}"]
    own += [f"train.batch={job.pairs}", f"train.warmup_steps={max(1, job.updates // 10)}", "train.sample_every=0"]
    own += [f"train.eval_every={job.eval_every}", "train.checkpoint_every=1000"]
    train(load_config(job.config, [*own, *job.overrides]))
    scores = judge(world, str(folder / "run"), folder / "media", job.prompts) if job.prompts else {}
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    curve = {line["step"]: errors for line in lines if (errors := _held_out(line))}
    result = {"scores": scores, "seconds": sum(line["time/seconds"] for line in lines)}
    result |= {"error": curve[max(curve)], "curve": curve}
    write_json(folder / "result.json", asdict(job) | result)
    return job


def _held_out(line: dict[str, float]) -> dict[str, float]:
    """The held-out errors of a line of metrics; most lines have none."""
    return {key.removeprefix("eval/"): value for key, value in line.items() if "eval/error" in key}


def judge(world: World, tuned: str | None, folder: Path, prompts: str) -> Scores:
    """Generate for some prompts, and judge what comes."""
    from diffpo.generation.generate import generate
    from diffpo.generation.settings import GenerateOptions
    from diffpo.media.prompts import load_prompts

    options = GenerateOptions(model=world.model, tuned=tuned, **world.sampling)
    generate(options, load_prompts(prompts), folder, label="x")
    return world.measure(folder)


def judge_base(world: World, output: Path, prompts: str) -> Scores:
    """Do the same for the base, once."""
    file = output / "base" / f"{prompts.replace(':', '-')}.json"
    if not file.exists():
        scores = judge(world, None, output / "base" / prompts.replace(":", "-"), prompts)
        file.write_text(json.dumps(scores))
    return json.loads(file.read_text())


def read_result(job: Job) -> dict[str, Any]:
    """Read a finished job's `result.json`."""
    return json.loads((Path(job.folder) / "result.json").read_text())


def run_all(world: World, jobs: Sequence[Job], processes: int, title: str) -> None:
    """Run what is not there yet, several at a time, each on one thread."""
    missing = [job for job in jobs if not job.done]
    print(f"{title}: {len(missing)} of {len(jobs)} to run", flush=True)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for i, done in enumerate(as_completed(pool.submit(run, world, job) for job in missing), 1):
            job = done.result()
            scores = read_result(job)["scores"]
            told = f"{world.headline} {mean(scores[world.headline]):.3f}  " if scores else ""
            print(f"{title} {i}/{len(missing)}  {told}{job.folder}", flush=True)


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


def pooled(lists: Sequence[Sequence[float]]) -> list[float]:
    """Put the seeds' scores one after the other."""
    return [value for values in lists for value in values]


def share(rate: WinRate) -> str:
    """A win rate with its interval."""
    return f"{rate.estimate:.3f} [{rate.ci_low:.3f}, {rate.ci_high:.3f}]"


def signed(value: Estimate) -> str:
    """A difference with its interval."""
    return f"{value.estimate:+.3f} [{value.ci_low:+.3f}, {value.ci_high:+.3f}]"


def percent(value: float) -> str:
    """A change; nothing where it is not known."""
    return "-" if value != value else f"{value:+.1f} %"


def write_between(page: Path, marks: tuple[str, str], text: str) -> None:
    """Write what stands between two marks of a page; the words around it are a person's."""
    before, rest = page.read_text(encoding="utf-8").split(marks[0])
    page.write_text(f"{before}{marks[0]}\n\n{text}\n{marks[1]}{rest.split(marks[1])[1]}", encoding="utf-8")
    print(text)
    print(f"wrote {page}")
