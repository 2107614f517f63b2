"""The main job on an embedded world: train, generate before and after, score, compare, report.

    SHAPES   Diffusion-DPO on pictures
    MOVING   DenseDPO on clips

Nothing here knows that the models are small: it calls what the other commands call, with the world's configuration.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from diffpo.compare.compare import compare
from diffpo.compare.export import write_result
from diffpo.compare.terminal import comparison_table
from diffpo.config.run import load_config
from diffpo.disk.files import write_json
from diffpo.generation.generate import generate
from diffpo.generation.settings import GenerateOptions
from diffpo.media.prompts import load_prompts
from diffpo.report.grid import write_grid
from diffpo.report.page import write_report
from diffpo.scorers import MovingMotion, MovingVerifier, PickScore, Scorer, ShapesUtility, ShapesVerifier
from diffpo.scorers.scores import score_folder
from diffpo.training.train import train


@dataclass(frozen=True, kw_only=True)
class World:
    """What the demo does on one world."""

    config: str
    """The configuration of the training; how its samples are drawn is how everything is drawn."""
    prompts: str
    """Prompts that nothing was trained on or chosen by."""
    most: int
    """How many of them are judged unless a user says otherwise."""
    seeds: tuple[int, ...]
    """Media of each prompt and model."""
    batch: int
    """Media at a time: they are small."""
    scorers: tuple[Scorer, ...]
    """The first one is the judge of the headline."""
    title: str
    """Heading of the report."""


SHAPES = World(
    config="configs/shapes-dpo.yaml",
    prompts="shapes:heldout",
    most=200,
    seeds=(0,),
    batch=50,
    scorers=(ShapesUtility(), ShapesVerifier(), PickScore(path="shapes:pickscore")),
    title="Diffusion-DPO on the shapes world",
)
MOVING = World(
    config="configs/moving-densedpo.yaml",
    prompts="moving:heldout",
    most=61,
    seeds=(0, 1, 2),
    batch=32,
    scorers=(MovingVerifier(), MovingMotion()),
    title="DenseDPO on the moving world",
)


def run_demo(
    output: Path,
    world: World = SHAPES,
    *,
    seed: int = 0,
    prompts: int | None = None,
    fresh: bool = False,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Do all of it in one folder, on held-out prompts; a second call reuses what is there.

    Args:
        output: Where everything goes.
        world: What is done.
        seed: Seed of the training.
        prompts: Held-out prompts to judge; None: as many as the world says.
        fresh: Begin anew.
        overrides: Of the world's configuration.

    Returns:
        What `summary.json` holds: `win_rate`, `ci_low`, `ci_high` (by the world's first scorer, on held-out prompts),
        `base` and `tuned` mean per scorer and their `difference` with its interval, `seconds` per stage.
    """
    config = load_config(world.config, [f"train.output={output}", f"train.seed={seed}", *overrides])
    seconds: dict[str, float] = {}
    with _timed("train", seconds):
        train(config, fresh=fresh)
    with _timed("generate", seconds):
        asked, folders = load_prompts(f"{world.prompts}:{prompts or world.most}"), []
        for label, tuned in (("base", None), (config.method_name, str(output))):
            options = GenerateOptions(
                model=config.model.path,
                tuned=tuned,
                seeds=world.seeds,
                noise="consecutive",  # no noise is used twice: prompts are independent
                size=config.sample.size,
                frames=config.sample.frames,
                fps=config.sample.fps,
                steps=config.sample.steps,
                guidance=config.sample.guidance,
                batch=world.batch,
            )
            folders.append(generate(options, asked, output / "media" / label, label=label, fresh=fresh).folder)
    with _timed("score", seconds):
        for folder in folders:
            score_folder(folder, world.scorers)
    with _timed("report", seconds):
        found = compare(folders, scorers=[scorer.name for scorer in world.scorers])
        write_result(output / "comparison.json", found)
        write_grid(output / "grid.png", folders, shuffle=0, scorer=world.scorers[0].name)
        write_report(output / "report.html", found, folders, run=output, title=world.title)
    (comparison,) = found.comparisons
    Console().print(comparison_table(comparison))
    headline = comparison.results[0]
    summary = {
        "win_rate": headline.win_rate.estimate,
        "ci_low": headline.win_rate.ci_low,
        "ci_high": headline.win_rate.ci_high,
        "judge": headline.scorer,
        "prompts": comparison.n_prompts,
        "base": {result.scorer: result.baseline_mean for result in comparison.results},
        "tuned": {result.scorer: result.model_mean for result in comparison.results},
        "difference": {
            each.scorer: [each.difference.estimate, each.difference.ci_low, each.difference.ci_high]
            for each in comparison.results
        },
        "seconds": seconds | {"total": sum(seconds.values())},
    }
    write_json(output / "summary.json", summary)
    return summary


@contextmanager
def _timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 2)
