"""Training curves of a run as small SVGs, to stand inside an HTML page: their colours are the page's CSS variables."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS = "metrics.jsonl"
MAX_POINTS = 400

FEW_POINTS = 20
"""Up to so many points are drawn as they are, with a mark on each."""

# matplotlib writes colours as literals; these unusual ones are replaced by the page's variables afterwards.
INK, FAINT, LINE = "#010203", "#010204", "#010205"
_SERIES = ("#010206", "#010207", "#010208", "#010209")
_VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)", LINE: "var(--line)"}
_VARIABLES |= {color: f"var(--series-{i})" for i, color in enumerate(_SERIES, start=1)}


Metrics = Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Name of a metric -> `[n]` updates and `[n]` values."""


@dataclass(frozen=True)
class Panel:
    """One chart; see `panels.yaml`."""

    title: str
    about: str
    metrics: dict[str, str]
    reference: tuple[float, str] | None = None
    smoothing: float = 0.9


PANELS = [Panel(**panel) for panel in yaml.safe_load(Path(__file__).with_name("panels.yaml").read_text("utf-8"))]


def read_metrics(run: str | Path) -> Metrics:
    """Read a run folder's metrics; empty where there are none. A line that is damaged, as by a kill, is passed over."""
    path = Path(run) / METRICS
    found: dict[str, list[tuple[float, float]]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else ():
        try:
            record = json.loads(line, parse_int=float)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(step := record.pop("step", None), float) and math.isfinite(step):
            for key, value in record.items():
                if isinstance(value, float):
                    found.setdefault(key, []).append((step, value))
    return {key: tuple(np.array(points).T) for key, points in found.items()}


def draw_panels(metrics: Metrics, salt: str = "") -> list[tuple[Panel, str]]:
    """Draw every panel of which at least one metric is there, as SVG to stand inside HTML.

    Each metric is drawn as logged, faint, and as its moving average. `salt` differs between runs on one page, so that
    no two SVGs use the same ids.
    """
    return [(panel, _draw(panel, metrics, salt)) for panel in PANELS if any(name in metrics for name in panel.metrics)]


def _draw(panel: Panel, metrics: Metrics, salt: str) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style = {"svg.fonttype": "none", "svg.hashsalt": panel.title + salt, "font.family": "sans-serif", "font.size": 9}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.6, 2.5))
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0.12, 0.19, 0.86, 0.68))
        shown = {label: metrics[name] for name, label in panel.metrics.items() if name in metrics}
        for color, (label, (steps, values)) in zip(_SERIES, shown.items(), strict=False):
            dense, line = len(steps) > FEW_POINTS, values
            if dense:
                faint = {"linewidth": 0.7, "alpha": 0.25}
                axes.plot(thin(steps, MAX_POINTS), thin(values, MAX_POINTS), color=color, **faint)
                line = moving_average(values, panel.smoothing)
            how = {"linewidth": 1.6, "marker": None if dense else "o", "markersize": 3}
            axes.plot(thin(steps, MAX_POINTS), thin(line, MAX_POINTS), color=color, label=label, **how)
        _decorate(axes, panel, np.concatenate([values for _, values in shown.values()]))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    return _for_html(buffer.getvalue(), panel.title)


def _decorate(axes: Axes, panel: Panel, values: NDArray[np.float64]) -> None:
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [0.005, 0.995]) if len(values) else (0.0, 1.0)  # a single spike flattens nothing
    room = (high - low) or abs(high) or 1.0
    if panel.reference is not None and low - room <= panel.reference[0] <= high + room:
        height, name = panel.reference
        axes.axhline(height, color=FAINT, linewidth=0.9, linestyle=(0, (3, 3)), label=name)
        low, high = min(low, height), max(high, height)
    axes.set_ylim(low - 0.08 * room, high + 0.08 * room)
    axes.margins(x=0.01)
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(colors=FAINT, length=0)
    axes.yaxis.get_offset_text().set_color(FAINT)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("update", color=FAINT)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(frameon=False, labelcolor=INK, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(-0.02, 1.0))


def moving_average(values: NDArray[np.float64], smoothing: float = 0.9) -> NDArray[np.float64]:
    """Exponential moving average, corrected for its start (as Adam does), `[n]`. What is no number is passed over."""
    result, total, weight = np.empty_like(values), 0.0, 0.0
    for i, value in enumerate(values):
        if math.isfinite(value):
            total = smoothing * total + (1 - smoothing) * value
            weight = smoothing * weight + (1 - smoothing)
        result[i] = total / weight if weight else math.nan
    return result


def thin(values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """At most `count` of the values, evenly spread, with the first and the last."""
    return values if len(values) <= count else values[np.linspace(0, len(values) - 1, count).round().astype(int)]


def _for_html(svg: str, title: str) -> str:
    """Leave of a stand-alone SVG what stands inside HTML: no prolog, metadata or size, only ids that it refers to."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", svg)
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r'\sid="([\w.-]+)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = re.sub(r"font: ([\d.]+px) 'sans-serif'[^;\"]*", r"font-size: \1", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
