"""The report: one HTML file that holds everything it shows, opens offline, and follows the reader's light or dark mode.

What was not made by this package (prompts, labels, categories, file names, configurations) passes through the
template's escaping; only the SVGs of `curves` and the package's own style and script are put in as they are. The page
forbids itself to fetch anything, and to run any script but that one.
"""

import base64
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from diffpo import __version__
from diffpo.compare.evidence import Evidence, read_evidence
from diffpo.compare.numbers import number, p_value, percent, points, signed
from diffpo.compare.result import Comparison, ScorerResult, Tournament
from diffpo.compare.stats import USUAL
from diffpo.compare.votes import HUMAN
from diffpo.disk.files import check_output, write_file
from diffpo.disk.published import published
from diffpo.errors import UserError
from diffpo.media.prompts import PromptSet
from diffpo.report.curves import draw_panels, read_metrics
from diffpo.report.examples import Gallery
from diffpo.report.views import PLOT, by_scorer, category_tables, distribution_of, elo_axis, notes_of, summary_of

HERE = Path(__file__).parent
PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(HERE),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
PAGES.filters |= {show.__name__: show for show in (percent, number, signed, p_value, points)}


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
    out, runs = Path(out), [Path(path) for path in ([run] if isinstance(run, str | Path) else run or ())]
    check_output(out)
    for path in runs:
        if not path.is_dir():
            raise UserError(f"there is no run folder {path}.")
    models, comparisons = found.models, found.comparisons
    scorers = [result.scorer for result in found.rankings or comparisons[0].results if result.scorer != HUMAN]
    evidence = read_evidence(folders) if folders else Evidence(())
    known = evidence.categories() if categories is None else categories
    gallery = Gallery(evidence, models, scorers[0], known) if scorers else None
    sections = gallery.sections(examples, extremes, seed) if gallery else []
    summary = summary_of(found)
    motionless = not comparisons and gallery is not None and gallery.motion is None  # a comparison has a note of it
    curves = [(path.name, draw_panels(read_metrics(path), str(i))) for i, path in enumerate(runs)]
    thing = "clip" if any(row.frames > 1 for place in evidence.scored for row in place.table.rows) else "image"
    return write_page(
        out,
        "report.html.j2",
        title=title or (f"{models[1]} against {models[0]}" if len(models) == 2 else f"{len(models)} models compared"),
        models=models,
        thing=thing,
        summary=summary,
        comparisons=comparisons,
        level=comparisons[0].level if comparisons else USUAL.level,
        scorers=by_scorer(comparisons),
        notes=notes_of(comparisons),
        rankings=[(ranking, *elo_axis(ranking)) for ranking in found.rankings],
        distributions=[distribution_of(evidence, models, scorer) for scorer in scorers],
        categories=list(category_tables(comparisons)),
        sections=sections,
        motion=_motion_of(comparisons, summary.model),
        unmeasured=motionless
        and not comparisons
        and any(example.moving for section in sections for example in section.all),
        runs=[(name if len(runs) > 1 else "", panels) for name, panels in curves if panels],
        facts=_facts(evidence, models, comparisons),
        provenance=_provenance(evidence, comparisons, runs, thing),
        plot=PLOT,
    )


def write_page(out: Path, template: str, **shown: Any) -> Path:
    """Fill a template, with the style and the script of a page, and the policy that lets nothing else in."""
    script = _resource("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = "img-src data:; media-src data:; style-src 'unsafe-inline'"
    policy = f"default-src 'none'; {allowed}; script-src 'sha256-{digest}'"
    closed = {"style": Markup(_resource("report.css")), "script": Markup(script), "policy": policy}
    made = {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "version": __version__}
    page = PAGES.get_template(template).render(**shown, **closed, **made)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, page)
    return out


def _motion_of(comparisons: Sequence[Comparison], model: str) -> ScorerResult | None:
    """What the first scorer of motion says of a model."""
    results = (result for comparison in comparisons if comparison.model == model for result in comparison.results)
    return next((result for result in results if result.provenance.get("measures") == "motion"), None)


def _resource(name: str) -> str:
    return "\n" + (HERE / name).read_text(encoding="utf-8")


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


def _provenance(
    evidence: Evidence, comparisons: Sequence[Comparison], runs: Sequence[Path], thing: str
) -> list[tuple[str, str]]:
    """The records themselves: (heading, text)."""
    configs = [
        (
            f"Configuration of {run.name}" if len(runs) > 1 else "Configuration",
            published(path.read_text(encoding="utf-8", errors="replace")),
        )
        for run in runs
        if (path := run / "config.yaml").is_file()
    ]
    records = {
        f"{thing.capitalize()}s of {place.settings.get('label', place.path.name)}": published(place.settings)
        for place in evidence.scored
        if place.settings
    }
    records |= {f"Scorer {result.scorer}": result.provenance for c in comparisons for result in c.results}
    return configs + [(name, json.dumps(record, indent=2, ensure_ascii=False)) for name, record in records.items()]
