"""What `diffpo set-metrics` does: choose features, compare sets, print tables, write JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from diffpo.benchmarks.sets import FEATURES
from diffpo.benchmarks.sets.features import Features
from diffpo.benchmarks.sets.run import SetReport, compare_sets
from diffpo.compare.numbers import number, signed, span
from diffpo.config.options import from_spec
from diffpo.disk.files import without_nan, write_json
from diffpo.errors import UserError

FORMAT = "diffpo sets 1"


def run_set_metrics(
    folders: Sequence[Path], features: Sequence[str], *, reference: Path | None, limit: float, out: Path
) -> None:
    """Compare, print, write; see `diffpo set-metrics --help` for what is given."""
    if not out.parent.is_dir():
        raise UserError(f"there is no folder {out.parent} for {out.name}: make it first.")
    if limit < 0:
        raise UserError(f"the limit is {limit}; it is a share of the baseline, such as 0.1.")
    makers: list[Features] = [from_spec(spec, FEATURES, "kind of features") for spec in features]
    report = compare_sets(folders, makers, reference=reference, limit=limit)
    console = Console()
    if any(item.distances for item in report.sets):
        console.print(_distances(report))
    console.print(_drifts(report))
    for note in report.notes:
        print(f"- {note}")
    alarms = f"ALARM: {'; '.join(report.alarms)}" if report.alarms else "no alarm"
    print(f"{alarms} (more than {limit:.0%} from {report.sets[0].model}, by the near end of the 95% interval)")
    write_json(out, without_nan({"format": FORMAT, **asdict(report), "alarms": report.alarms}))


def _distances(report: SetReport) -> Table:
    table = _table(f"distance to {report.target}", "model", "features", "images", "FID", "KID x 1000")
    for item in report.sets:
        for each in item.distances:
            kid = "?" if each.kid is None else f"{1000 * each.kid.mean:.2f} (std {1000 * each.kid.std:.2f})"
            images = f"{each.images[0]}, {each.images[1]}"
            table.add_row(item.model, each.features, images, number(each.fid), kid)
    return table


def _drifts(report: SetReport) -> Table:
    table = _table(f"drift from {report.sets[0].model}", "model", "what", "mean", "change", "95% interval", "")
    for item in report.sets:
        for drift in item.drifts:
            change = drift.change
            cells = ("", "") if change is None else (signed(change.estimate), span(change, signed))
            table.add_row(item.model, drift.what, number(drift.mean), *cells, drift.flag.replace("alarm", "ALARM"))
    return table


def _table(title: str, *headers: str) -> Table:
    table = Table(title=escape(title), box=box.SIMPLE_HEAD, pad_edge=False)
    for place, header in enumerate(headers):
        table.add_column(header, justify="left" if place < 2 else "right", overflow="fold")
    return table
