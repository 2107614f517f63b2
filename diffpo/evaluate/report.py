"""The report: one HTML file that holds everything it shows, opens offline, and follows the reader's light or dark mode.

What was not made by this package (prompts, labels, file names, configurations) passes through the template's
escaping; only the SVGs of `curves` are put in as they are.
"""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from diffpo import __version__
from diffpo.errors import UserError
from diffpo.evaluate.compare import ScoredPair, pair_scores
from diffpo.evaluate.comparison import Comparison, number, p_value, percent, signed
from diffpo.evaluate.curves import draw_panels, read_metrics
from diffpo.evaluate.grid import fit
from diffpo.evaluate.media import Media, open_image, read_settings, write_atomic
from diffpo.evaluate.scores import ScoreTable, read_scores

TEMPLATE = "report.html.j2"
LARGEST_EDGE = 448
"""Pixels; larger images are embedded at this size."""


@dataclass(frozen=True)
class Example:
    """One prompt before and after."""

    prompt: str
    seed: int
    baseline: str
    """Data URI."""
    model: str
    baseline_score: str
    model_score: str
    gain: float


@dataclass(frozen=True)
class Section:
    """A row of examples and how they were chosen."""

    title: str
    about: str
    examples: list[Example]


def write_report(
    out: str | Path,
    comparison: Comparison,
    folders: Sequence[str | Path],
    *,
    run: str | Path | None = None,
    title: str | None = None,
    examples: int = 8,
    extremes: int = 4,
    seed: int = 0,
) -> Path:
    """Write the report.

    Args:
        out: The HTML file.
        comparison: What `compare` found.
        folders: The scored media folders it was found in.
        run: Run folder of `diffpo train`, for the curves and the configuration.
        title: Heading; made from the labels by default.
        examples: How many random examples.
        extremes: How many of the largest wins, and of the largest losses.
        seed: Chooses the random examples; it is printed beside them.

    Returns:
        `out`.

    Raises:
        UserError: If an image or a score is missing, or `run` is no folder.
    """
    import jinja2

    if run is not None and not Path(run).is_dir():
        raise UserError(f"there is no run folder {run}.")
    out = Path(out)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number, "signed": signed, "p_value": p_value, "axis": _axis}
    page = environment.get_template(TEMPLATE).render(
        title=title or f"{comparison.model} against {comparison.baseline}",
        comparison=comparison,
        sections=_sections(comparison, folders, examples, extremes, seed),
        panels=draw_panels(read_metrics(run)) if run is not None else [],
        config=_config(run),
        provenance=_provenance(comparison, folders),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page.encode())
    return out


def _sections(
    comparison: Comparison, folders: Sequence[str | Path], examples: int, extremes: int, seed: int
) -> list[Section]:
    """Random examples first, then both ends: never only the best."""
    scorer = comparison.results[0].scorer
    tables = [read_scores(folder) for folder in folders]
    homes = _homes(tables, folders)
    pairs = pair_scores(tables, scorer, model=comparison.model, baseline=comparison.baseline)
    drawn = random.Random(seed).sample(pairs, min(examples, len(pairs)))
    ranked = sorted(pairs, key=lambda pair: pair.gain)
    wins = [pair for pair in reversed(ranked) if pair.gain > 0][:extremes]
    losses = [pair for pair in ranked if pair.gain < 0][:extremes]
    chosen = [
        (
            "At random",
            f"Drawn from all {len(pairs)} comparisons with seed {seed}, so nobody picked the good ones.",
            drawn,
        ),
        ("Largest wins", f"Where {comparison.model} gains most, by {scorer}.", wins),
        ("Largest losses", f"Where {comparison.model} loses most, by {scorer}.", losses),
    ]
    return [Section(name, about, [_example(pair, homes) for pair in some]) for name, about, some in chosen if some]


def _homes(tables: Sequence[ScoreTable], folders: Sequence[str | Path]) -> dict[str, Path]:
    """The folder of each model's images: for a parquet file, the one it lies in."""
    places = [Path(folder) if Path(folder).is_dir() else Path(folder).parent for folder in folders]
    return {label: place for table, place in zip(tables, places, strict=True) for label in table.models}


def _example(pair: ScoredPair, homes: dict[str, Path]) -> Example:
    def embed(row: Any) -> str:
        media = Media(file=row.file, prompt=row.prompt, prompt_id=row.prompt_id, seed=row.seed, model=row.model)
        return data_uri(open_image(homes[row.model], media))

    return Example(
        prompt=pair.model.prompt,
        seed=pair.model.seed,
        baseline=embed(pair.baseline),
        model=embed(pair.model),
        baseline_score=number(pair.baseline.score),
        model_score=number(pair.model.score),
        gain=pair.gain,
    )


def data_uri(image: Any) -> str:
    """An image as text: small ones exactly, as PNG; large ones reduced, as WebP."""
    buffer = io.BytesIO()
    if max(image.size) > LARGEST_EDGE:
        image = fit(image, LARGEST_EDGE)
    if max(image.size) <= 128:
        kind = "png"
        image.save(buffer, format="PNG", optimize=True)
    else:
        kind = "webp"
        image.save(buffer, format="WEBP", quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _config(run: str | Path | None) -> str | None:
    path = Path(run) / "config.yaml" if run is not None else None
    return path.read_text(encoding="utf-8") if path is not None and path.is_file() else None


def _provenance(comparison: Comparison, folders: Sequence[str | Path]) -> list[tuple[str, str]]:
    """What a reader needs to do it again: (heading, JSON)."""
    records = [
        (f"Images of {settings.get('label', folder)}", settings)
        for folder in folders
        if (settings := read_settings(folder))
    ]
    records += [(f"Scorer {result.scorer}", result.provenance) for result in comparison.results]
    return [(name, json.dumps(record, indent=2, ensure_ascii=False)) for name, record in records]


def _axis(share: float) -> str:
    """A share as a CSS length along an axis; an unknown one lies in the middle."""
    return f"{100 * share:.2f}%" if share == share else "50%"
