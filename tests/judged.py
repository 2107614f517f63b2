"""Score tables written by hand: models, prompts, seeds and scorers as a test needs them."""

from __future__ import annotations

import json
from pathlib import Path

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
