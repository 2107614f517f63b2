"""The main job on the embedded shapes world: train DPO, generate before and after, score, compare, report.

Nothing here knows that the model is small: it calls what the other commands call, with `configs/shapes-dpo.yaml`.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from diffpo.scorers import PickScore, ShapesUtility, ShapesVerifier
from diffpo.scorers.scores import score_folder
from diffpo.training.train import train

CONFIG = "configs/shapes-dpo.yaml"
BATCH = 50
"""Images at a time: they are small."""


def run_demo(
    output: Path, *, seed: int = 0, prompts: int = 200, fresh: bool = False, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Do all of it in one folder, with one image per model of each held-out prompt; a second call reuses what is there.

    Returns:
        What `summary.json` holds: `win_rate`, `ci_low`, `ci_high` (by the annotators' own utility, on held-out
        prompts), `base` and `tuned` mean per scorer and their `difference` with its interval, `seconds` per stage.
    """
    config = load_config(CONFIG, [f"train.output={output}", f"train.seed={seed}", *overrides])
    seconds: dict[str, float] = {}
    with _timed("train", seconds):
        train(config, fresh=fresh)
    with _timed("generate", seconds):
        asked, folders = load_prompts(f"shapes:heldout:{prompts}"), []
        for label, tuned in (("base", None), ("dpo", str(output))):
            options = GenerateOptions(
                model=config.model.path,
                tuned=tuned,
                noise="consecutive",  # no noise is used twice: prompts are independent
                steps=config.sample.steps,
                guidance=config.sample.guidance,
                batch=BATCH,
            )
            folders.append(generate(options, asked, output / "media" / label, label=label, fresh=fresh).folder)
    scorers = [ShapesUtility(), ShapesVerifier(), PickScore(path="shapes:pickscore")]
    with _timed("score", seconds):
        for folder in folders:
            score_folder(folder, scorers)
    with _timed("report", seconds):
        found = compare(folders, scorers=[scorer.name for scorer in scorers])
        write_result(output / "comparison.json", found)
        write_grid(output / "grid.png", folders, shuffle=0, scorer=scorers[0].name)
        write_report(output / "report.html", found, folders, run=output, title="Diffusion-DPO on the shapes world")
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
