"""What `diffpo evaluate` does: train what is not trained, generate, score, compare, report. All of it continues.

    OUTPUT/media/LABEL-KEY/     images and scores of each model (see `generation.generate`)
    OUTPUT/comparison.json      also `.csv` and `.tex`
    OUTPUT/report.html, grid.png, evaluation.yaml

Several processes share the images and their scores; the first one does the rest. They do not train: the pairs of an
update would depend on their number.
"""

import os
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from diffpo.compare.compare import compare
from diffpo.compare.export import ENDINGS, check_outs, write_result
from diffpo.compare.terminal import print_result
from diffpo.config.evaluation import Evaluation, JudgedModel
from diffpo.config.run import Config, load_config
from diffpo.disk.files import write_file
from diffpo.disk.lock import sole_writer
from diffpo.errors import UserError
from diffpo.generation.generate import find_stored
from diffpo.generation.processes import forget_settings, make_state, quiet_console
from diffpo.generation.request import Request
from diffpo.generation.settings import GenerateOptions
from diffpo.generation.work import fill
from diffpo.media.prompts import load_prompts
from diffpo.models.finding import find_model
from diffpo.report.grid import write_grid
from diffpo.report.page import write_report
from diffpo.scorers.scores import score_folder, score_share
from diffpo.training.run import EFFECTIVE, FREE, changes


@dataclass(frozen=True)
class Evaluated:
    """What a call of `evaluate` did."""

    folder: Path
    media: tuple[Path, ...]
    """The models' media folders, in the order of the configuration."""
    images: int
    made: int
    """How many of the images were made now, by all processes."""


def evaluate(evaluation: Evaluation) -> Evaluated:
    """Judge models; what an earlier call made is used."""
    prompts = load_prompts(evaluation.prompts)
    scorers = evaluation.scorers
    names = list({scorer.name: scorer.provenance for scorer in scorers})  # weights that are not there are missed now
    options = {label: _options(evaluation, model) for label, model in evaluation.models.items()}
    for model in evaluation.models.values():
        if model.path is not None:  # what is not there is missed before hours of training and sampling
            find_model(model.path, lora=model.lora, denoiser=model.denoiser, tuned=model.tuned)
    for model in evaluation.models.values():
        if model.train is not None:
            prepare_run(model)
    state = make_state()
    console = quiet_console(state)
    output = Path(evaluation.output)
    output.mkdir(parents=True, exist_ok=True)  # what is no place for it is missed now
    with sole_writer(output, "diffpo evaluate") if state.is_main_process else nullcontext():
        works = {
            label: find_stored(Request.of(each, label), prompts, output / "media", labels=options.keys())
            for label, each in options.items()
        }
        for label, work in works.items():
            images = len(work.media)
            console.print(f"{label}: {images} images, {images - work.reused} to make", style="dim", highlight=False)
        fill(works.values(), state, console)
        if state.num_processes > 1:
            for work in works.values():
                score_share(work.folder, scorers, console=console, rank=state.process_index, world=state.num_processes)
            state.wait_for_everyone()
        media = tuple(work.folder for work in works.values())
        if state.is_main_process:
            for folder in media:
                score_folder(folder, scorers, console=console)
            _compare(evaluation, media, names, [each.tuned for each in options.values()])
        state.wait_for_everyone()
    if state.num_processes > 1:
        state.destroy_process_group()
    return Evaluated(
        folder=output,
        media=media,
        images=sum(len(work.media) for work in works.values()),
        made=sum(len(work.media) - work.reused for work in works.values()),
    )


def prepare_run(model: JudgedModel) -> None:
    """See that the run of a training configuration is finished; else train it.

    Refused are several processes, and a run with other settings, which would be judged under a name that is not its own
    (more steps are no other setting).
    """
    assert model.train is not None
    config = load_config(model.train, model.overrides)
    folder = config.train.output
    if is_finished(config):
        return
    differ = _differences(config)
    differ.pop("train.steps", None)
    if differ:
        lines = "\n".join(f"  {key}: {there} there, {here} here" for key, (there, here) in differ.items())
        raise UserError(
            f"{folder} holds a run with another config:\n{lines}\nGive this model a folder of its own with "
            "train.output=... among its overrides, or leave the settings as they are there"
        )
    if os.environ.get("WORLD_SIZE", "1") != "1":
        command = " ".join(["diffpo train", model.train, *model.overrides])
        raise UserError(
            f"{folder} is not trained yet, and several processes evaluate but do not train: the pairs of an update "
            f"would depend on their number. First run `{command}`."
        )
    from diffpo.training.train import train  # takes seconds, which an evaluation without training need not wait

    train(config)
    forget_settings()


def is_finished(config: Config) -> bool:
    """Whether the run of a configuration is there and done: what decides its weights is as the configuration says."""
    folder = Path(config.train.output or "")
    return (folder / "final").is_dir() and (folder / "config.yaml").is_file() and not _differences(config)


def _differences(config: Config) -> dict[str, list[Any]]:
    """Settings that decide weights and differ from those of the run in the folder: key -> [there, here]."""
    folder = Path(config.train.output or "")
    found = changes(folder, config.to_dict()) if (folder / "config.yaml").is_file() else {}
    return {key: values for key, values in found.items() if key not in FREE | {EFFECTIVE}}


def _options(evaluation: Evaluation, model: JudgedModel) -> GenerateOptions:
    """What `generate` is told of a model."""
    if model.path is not None:
        return evaluation.options(model.path, lora=model.lora, denoiser=model.denoiser, tuned=model.tuned)
    assert model.train is not None
    config = load_config(model.train, model.overrides)
    start = None if config.model.trains_base else config.model.denoiser  # a LoRA lies on what it was trained on
    return evaluation.options(config.model.path, denoiser=start, tuned=config.train.output)


def _compare(evaluation: Evaluation, media: tuple[Path, ...], scorers: list[str], tuned: Iterable[str | None]) -> None:
    """Compare, and write everything that a reader sees; of runs of `diffpo train` also the curves."""
    places = [Path(place).expanduser() for place in tuned if place is not None]
    runs = dict.fromkeys(place.parent if place.name == "final" else place for place in places)
    runs = [run for run in runs if (run / "metrics.jsonl").is_file()]
    output = Path(evaluation.output)
    write_file(output / "evaluation.yaml", yaml.safe_dump(evaluation.to_dict(), sort_keys=False, allow_unicode=True))
    outs, judging = [output / f"comparison{ending}" for ending in ENDINGS], evaluation.compare.judging
    check_outs(outs)
    found = compare(media, baseline=evaluation.baseline, scorers=scorers, judging=judging)
    print_result(found, Console())
    for out in outs:
        write_result(out, found)
    write_grid(output / "grid.png", media, shuffle=0, scorer=scorers[0])
    write_report(output / "report.html", found, media, run=runs, title=evaluation.title)
