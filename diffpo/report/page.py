"""The report: one HTML file that holds everything it shows, opens offline, and follows the reader's light or dark mode.

What was not made by this package (prompts, labels, categories, file names, configurations) passes through the
template's escaping; only the SVGs of `curves` and the package's own style and script are put in as they are. The page
forbids itself to fetch anything, and to run any script but that one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffpo import __version__
from diffpo.compare.evidence import Evidence, read_evidence
from diffpo.compare.numbers import number, p_value, percent, points, signed
from diffpo.compare.result import Comparison, Tournament
from diffpo.compare.stats import USUAL
from diffpo.compare.votes import HUMAN
from diffpo.disk.files import check_output, write_file
from diffpo.disk.published import published
from diffpo.errors import UserError
from diffpo.media.prompts import PromptSet
from diffpo.report.curves import draw_panels, read_metrics
from diffpo.report.examples import Gallery
from diffpo.report.views import PLOT, by_scorer, category_tables, distributions_of, matrix_of, notes_of, summary_of

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATE, STYLE, SCRIPT = "report.html.j2", "report.css", "report.js"


def write_report(
    out: str | Path,
    found: Tournament,
    folders: Sequence[str | Path],
    *,
    run: str | Path | Sequence[str | Path] | None = None,
    title: str | None = None,
    categories: Mapping[str, str] | None = None,
    examples: int = 8,
    extremes: int = 4,
    seed: int = 0,
) -> Path:
    """Write the report.

    Args:
        out: The HTML file.
        found: What `compare` found.
        folders: The scored media folders it was found in.
        run: Run folders of `diffpo train`, for the curves and the configurations.
        title: Heading; made from the labels by default.
        categories: Prompt -> category; None: what the media folders know.
        examples: How many random examples.
        extremes: How many of the largest wins, and of the largest losses, of each model.
        seed: Chooses the random examples; it is printed beside them.

    Returns:
        `out`.

    Raises:
        UserError: If an image or a score is missing, `run` is no folder, or `out` cannot be written.
    """
    out = Path(out)
    check_output(out)
    runs = [] if run is None else [Path(run)] if isinstance(run, str | Path) else [Path(path) for path in run]
    for path in runs:
        if not path.is_dir():
            raise UserError(f"there is no run folder {path}.")
    models, comparisons = found.models, found.comparisons
    scorers = [result.scorer for result in found.rankings or comparisons[0].results]
    evidence = read_evidence(folders) if folders else Evidence(())
    judge = next((name for name in scorers if name != HUMAN), None)
    known = evidence.categories() if categories is None else categories
    gallery = Gallery(evidence, models, judge, known) if judge else None
    page = _render(
        title=title or (f"{models[1]} against {models[0]}" if len(models) == 2 else f"{len(models)} models compared"),
        models=models,
        summary=summary_of(found),
        comparisons=comparisons,
        level=comparisons[0].level if comparisons else USUAL.level,
        scorers=by_scorer(comparisons),
        notes=notes_of(comparisons),
        matrices=[matrix_of(ranking) for ranking in found.rankings],
        distributions=distributions_of(evidence, models, scorers),
        categories=category_tables(comparisons),
        sections=gallery.sections(examples, extremes, seed) if gallery else [],
        runs=_curves(runs),
        facts=_facts(evidence, models, comparisons),
        provenance=_provenance(evidence, comparisons, runs),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, page.encode())
    return out


def _render(**values: Any) -> str:
    from markupsafe import Markup

    script = _resource(SCRIPT)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template(TEMPLATE)
        .render(
            **values,
            style=Markup(_resource(STYLE)),
            script=Markup(script),
            policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
            plot=PLOT,
            date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            version=__version__,
        )
    )


def _environment() -> Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number, "signed": signed, "p_value": p_value, "axis": _axis}
    environment.filters |= {"points": points}
    return environment


def _resource(name: str) -> str:
    return "\n" + (Path(__file__).parent / name).read_text(encoding="utf-8")


def _curves(runs: Sequence[Path]) -> list[tuple[str, list[tuple[Any, str]]]]:
    """The panels of every run that has any, with its name where there are several."""
    drawn = [(run.name if len(runs) > 1 else "", draw_panels(read_metrics(run), str(i))) for i, run in enumerate(runs)]
    return [(name, panels) for name, panels in drawn if panels]


def _facts(evidence: Evidence, models: Sequence[str], comparisons: Sequence[Comparison]) -> list[tuple[str, str]]:
    """What a reader needs first to do it again: (what, value)."""
    sets: dict[str, None] = {}
    for place in evidence.scored:
        prompts = PromptSet.of(row.prompt for row in sorted(place.table.rows, key=lambda row: row.prompt_id))
        name, known = published(place.settings.get("prompts", "named by no set")), place.settings.get("prompts_hash")
        sets[f"{name}: {len(prompts.prompts)} prompts, hash {known or prompts.hash}"] = None
    modes = dict.fromkeys(f"{comparison.mode}: {comparison.what}" for comparison in comparisons)
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy"))
    return [
        ("Models", ", ".join(models)),
        ("Prompts", "; ".join(sets) or "those of the votes"),
        ("Compared", "; ".join(modes)),
        ("Computed with", f"diffpo {__version__}, Python {platform.python_version()}, {packages}"),
    ]


def _provenance(evidence: Evidence, comparisons: Sequence[Comparison], runs: Sequence[Path]) -> list[tuple[str, str]]:
    """The records themselves: (heading, text)."""
    configs = [
        (
            f"Configuration of {run.name}" if len(runs) > 1 else "Configuration",
            published(path.read_text(encoding="utf-8", errors="replace")),
        )
        for run in runs
        if (path := run / "config.yaml").is_file()
    ]
    images = {
        f"Images of {place.settings.get('label', place.path.name)}": published(place.settings)
        for place in evidence.scored
        if place.settings
    }
    scorers = {f"Scorer {result.scorer}": result.provenance for c in comparisons for result in c.results}
    records = [(name, json.dumps(record, indent=2, ensure_ascii=False)) for name, record in (images | scorers).items()]
    return configs + records


def _axis(share: float) -> str:
    """A share as a CSS length along an axis; an unknown one lies in the middle."""
    return f"{100 * share:.2f}%" if share == share else "50%"
