"""Score tables written by hand: models, prompts, seeds and scorers as a test needs them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from diffpo.compare.compare import compare
from diffpo.compare.export import write_result
from diffpo.compare.result import Tournament
from diffpo.disk.files import without_nan
from diffpo.scorers.scores import ScoreRow, ScoreTable, write_scores


def write_folder(folder: Path, model: str, scores: dict[str, dict[str, list[float]]], settings=None) -> Path:
    """Write a media folder without images: scorer -> prompt -> scores of seeds 0, 1, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        ScoreRow(file=f"{i}-{seed}.png", prompt=prompt, prompt_id=i, seed=seed, model=model, scorer=scorer, score=score)
        for scorer, by_prompt in scores.items()
        for i, (prompt, values) in enumerate(by_prompt.items())
        for seed, score in enumerate(values)
    ]
    write_scores(folder / "scores.parquet", ScoreTable(rows, {name: {"scorer": name} for name in scores}))
    (folder / "settings.json").write_text(json.dumps({"label": model, **(settings or {})}))
    return folder


def compare_two(sources, *, model=None, **options):
    """The comparison of two models."""
    (found,) = compare(sources, models=[] if model is None else [model], **options).comparisons
    return found


def write_comparison(path, found):
    """Write one comparison as `diffpo compare` does, and check that the JSON holds all of it; returns the record."""
    write_result(path, Tournament(models=(found.baseline, found.model), comparisons=(found,)))
    if path.suffix == ".json":
        record = json.loads(path.read_text())
        assert record == record_of(found)
        return record
    return None


def record_of(found):
    """A comparison as JSON says it."""
    record = {**asdict(found), "verdict": found.verdict, "headline": found.headline}
    return json.loads(json.dumps(without_nan(record), allow_nan=False))
