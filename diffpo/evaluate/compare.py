"""Compares two models on the same prompts and seeds, scorer by scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffpo.errors import UserError
from diffpo.evaluate.comparison import (
    Comparison,
    ScorerResult,
    comparison_table,
    read_comparison,
    write_comparison,
)
from diffpo.evaluate.media import read_settings
from diffpo.evaluate.scores import ScoreRow, ScoreTable, read_scores
from diffpo.evaluate.stats import Interval, mean_difference, win_rate

__all__ = [
    "Comparison",
    "ScoredPair",
    "ScorerResult",
    "compare",
    "comparison_table",
    "pair_scores",
    "read_comparison",
    "write_comparison",
]

TIE_TOLERANCE = 1e-6
"""Relative to the largest score: what rounding in float32 makes of the same image is no win."""
FEW_PROMPTS = 30
_SAMPLING = (
    "weights",
    "prompts_hash",
    "scheduler",
    "steps",
    "guidance",
    "size",
    "negative_prompt",
    "dtype",
    "device",
    "batch",
)


@dataclass(frozen=True)
class ScoredPair:
    """The images of two models for one prompt and seed, as one scorer sees them."""

    model: ScoreRow
    baseline: ScoreRow

    @property
    def gain(self) -> float:
        """How much better the model's image is."""
        return self.model.score - self.baseline.score


def compare(
    sources: Sequence[str | Path],
    *,
    model: str | None = None,
    baseline: str | None = None,
    scorers: Sequence[str] | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    interval: Interval = "percentile",
    seed: int = 0,
) -> Comparison:
    """Compare two models.

    Args:
        sources: Scored media folders or parquet tables. Where they hold two models, the first is the baseline.
        model: Label of the model.
        baseline: Label of what it is compared with.
        scorers: Which, the first for the headline; by default all that scored both.
        level: Of the intervals.
        resamples: Of the bootstrap over prompts.
        interval: `percentile` or `bca`.
        seed: Of the resampling.

    Raises:
        UserError: If a label or a scorer is unknown, or the two were not scored on the same prompts and seeds by the
            same scorer.
    """
    tables = [read_scores(source) for source in sources]
    baseline, model = _choose_models(tables, sources, baseline, model)
    names = _choose_scorers(tables, scorers, (baseline, model))
    pairs = {name: pair_scores(tables, name, model=model, baseline=baseline) for name in names}
    options = {"level": level, "resamples": resamples, "interval": interval, "seed": seed}
    results = [
        _judge(name, pairs[name], _common_provenance(tables, name, (baseline, model)), options) for name in names
    ]
    first = results[0].win_rate
    return Comparison(
        model=model,
        baseline=baseline,
        n_prompts=first.n_prompts,
        n_pairs=first.n_pairs,
        level=level,
        results=tuple(results),
        notes=(*_notes_on_pairs(pairs[names[0]], len(names)), *_notes_on_sampling(tables, sources, (baseline, model))),
    )


def pair_scores(tables: Sequence[ScoreTable], scorer: str, *, model: str, baseline: str) -> list[ScoredPair]:
    """Bring one scorer's rows of two models together by prompt and seed.

    Raises:
        UserError: If the two do not have the same prompts and seeds; it says how many match.
    """
    first, second = (_by_image(tables, scorer, label) for label in (model, baseline))
    common = sorted(key for key in first if key in second)  # resampling must not depend on the order of rows
    if len(common) < max(len(first), len(second)):
        raise UserError(
            f"{model} and {baseline} were not scored on the same prompts and seeds by {scorer}: {len(common)} match; "
            f"others: {len(first) - len(common)} of {model}, {len(second) - len(common)} of {baseline}. "
            "Generate both from the same prompts with the same seeds, then score both."
        )
    return [ScoredPair(first[key], second[key]) for key in common]


def _judge(name: str, pairs: list[ScoredPair], provenance: dict[str, Any], options: dict[str, Any]) -> ScorerResult:
    a, b = [pair.model.score for pair in pairs], [pair.baseline.score for pair in pairs]
    prompts = [pair.model.prompt for pair in pairs]
    tolerance = TIE_TOLERANCE * max(map(abs, (*a, *b)))
    difference = mean_difference(a, b, prompts, **options)
    model_mean = mean_difference(a, [0.0] * len(a), prompts, resamples=1).estimate
    return ScorerResult(
        scorer=name,
        model_mean=model_mean,
        baseline_mean=model_mean - difference.estimate,
        difference=difference,
        win_rate=win_rate(a, b, prompts, tie_tolerance=tolerance, **options),
        provenance=provenance,
    )


def _choose_models(
    tables: Sequence[ScoreTable], sources: Sequence[str | Path], baseline: str | None, model: str | None
) -> tuple[str, str]:
    owners: dict[str, list[str]] = {}
    for source, table in zip(sources, tables, strict=True):
        for label in table.models:
            owners.setdefault(label, []).append(str(source))
    for label, places in owners.items():
        if len(places) > 1:
            raise UserError(
                f"{' and '.join(places)} both call their model {label!r}. Give them different labels: "
                "`diffpo generate --label`."
            )
    for label in (baseline, model):
        if label is not None and label not in owners:
            raise UserError(f"there are no scores of {label!r}; there are those of {', '.join(owners)}.")
    rest = [label for label in owners if label not in (baseline, model)]
    wanted = [baseline, model].count(None)
    if len(rest) < wanted or (len(rest) > wanted and wanted):
        raise UserError(
            f"need two models to compare, found {', '.join(owners) or 'none'}: name the model and the baseline."
        )
    baseline = baseline or rest.pop(0)
    model = model or rest.pop(0)
    if model == baseline:
        raise UserError(f"{model!r} cannot be compared with itself.")
    return baseline, model


def _choose_scorers(tables: Sequence[ScoreTable], wanted: Sequence[str] | None, labels: tuple[str, str]) -> list[str]:
    by_model = {label: {row.scorer for t in tables for row in t.rows if row.model == label} for label in labels}
    known = list(dict.fromkeys(name for table in tables for name in table.scorers))
    common = [name for name in known if all(name in names for names in by_model.values())]
    unknown = [name for name in wanted or () if name not in common]
    if unknown or not common:
        has = "; ".join(f"{label} has {', '.join(sorted(names)) or 'none'}" for label, names in by_model.items())
        raise UserError(
            f"need scores by the same scorer ({', '.join(unknown) or 'any'}) for both models: {has}. "
            "Run `diffpo score` on both."
        )
    return list(wanted or common)


def _by_image(tables: Sequence[ScoreTable], scorer: str, label: str) -> dict[tuple[str, int], ScoreRow]:
    rows: dict[tuple[str, int], ScoreRow] = {}
    for table in tables:
        for row in table.rows:
            if (row.scorer, row.model) == (scorer, label):
                if (row.prompt, row.seed) in rows:
                    raise UserError(
                        f"{label} has two scores of {scorer} for the prompt {row.prompt!r}, seed {row.seed}."
                    )
                rows[row.prompt, row.seed] = row
    return rows


def _common_provenance(tables: Sequence[ScoreTable], scorer: str, labels: tuple[str, str]) -> dict[str, Any]:
    records = []
    for table in tables:
        if any(row.scorer == scorer and row.model in labels for row in table.rows):
            records.append(table.provenance.get(scorer, {}))
    for other in records[1:]:
        if other != records[0]:
            keys = sorted(key for key in {*records[0], *other} if records[0].get(key) != other.get(key))
            raise UserError(
                f"the scores of {scorer} were made differently for the two models ({', '.join(keys)}). "
                "Score both again."
            )
    return records[0]


def _notes_on_pairs(pairs: list[ScoredPair], n_scorers: int) -> list[str]:
    notes = []
    prompts, seeds = {pair.model.prompt for pair in pairs}, {pair.model.seed for pair in pairs}
    if len(prompts) < FEW_PROMPTS:
        notes.append(f"Only {len(prompts)} prompts: the intervals are rough.")
    if len(prompts) > 1 and len(seeds) * len(prompts) == len(pairs):
        shared = "seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
        notes.append(
            f"All prompts share the same {shared}, hence the same noise: the intervals tell how other prompts would "
            "differ, not how other seeds would. Generating with --distinct-seeds gives each prompt its own noise."
        )
    if n_scorers > 1:
        notes.append(f"{n_scorers} scorers were asked; p-values are not adjusted for that.")
    return notes


def _notes_on_sampling(
    tables: Sequence[ScoreTable], sources: Sequence[str | Path], labels: tuple[str, str]
) -> list[str]:
    """Say where the two models were sampled differently, as far as their folders tell."""
    settings = {
        label: read_settings(source)
        for source, table in zip(sources, tables, strict=True)
        for label in labels
        if Path(source).is_dir() and label in table.models
    }
    if len(settings) < 2:
        return []
    first, second = (settings[label] for label in labels)
    changed = [key for key in _SAMPLING if first.get(key) != second.get(key)]
    listed = "; ".join(f"{key} {first.get(key)} and {second.get(key)}" for key in changed)
    return [f"{' and '.join(labels)} were sampled differently, and the scores show both: {listed}."] if changed else []
