"""Training curves of a run as small SVGs, to stand inside an HTML page: their colours are the page's CSS variables."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

METRICS = "metrics.jsonl"
MAX_POINTS = 400
_SMOOTHING = 0.9

# matplotlib writes colours as literals; these unusual ones are replaced by variables afterwards.
_COLORS = {"#010203": "var(--ink)", "#010204": "var(--faint)", "#010205": "var(--line)"}
_SERIES = ("#010206", "#010207", "#010208", "#010209")
_COLORS |= {color: f"var(--series-{i})" for i, color in enumerate(_SERIES, start=1)}


@dataclass(frozen=True)
class Series:
    """One metric over training: `[n]` updates and `[n]` values."""

    steps: NDArray[np.float64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Panel:
    """One chart: a title, what it tells, and which metrics are in it by which names."""

    title: str
    about: str
    metrics: dict[str, str]
    reference: float | None = None
    """Height of a dashed line."""


PANELS = (
    Panel(
        "Loss",
        "log 2 = 0.693 is where policy and reference agree.",
        {"loss": "training", "eval/loss": "held-out"},
        math.log(2),
    ),
    Panel(
        "Accuracy",
        "Share of pairs whose chosen image the policy denoises better than the rejected one, relative to the reference.",
        {"rewards/accuracies": "training", "eval/rewards/accuracies": "held-out"},
        0.5,
    ),
    Panel(
        "Margin", "Mean of u = beta * margin.", {"rewards/margins": "training", "eval/rewards/margins": "held-out"}, 0.0
    ),
    Panel(
        "Denoising error",
        "If the error of the chosen images rises as well, the model forgets how to draw.",
        {"error/chosen": "chosen", "error/rejected": "rejected"},
    ),
    Panel("Gradient norm", "Before clipping.", {"grad_norm": "training"}),
    Panel("Learning rate", "As the optimizer uses it.", {"learning_rate": "training"}),
)


def read_metrics(run: str | Path) -> dict[str, Series]:
    """Read a run folder's metrics; empty where there are none. A line that a kill cut off is passed over."""
    path = Path(run) / METRICS
    columns: dict[str, tuple[list[float], list[float]]] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").split("\n"):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and _is_number(record.get("step")):
                for key, value in record.items():
                    if key != "step" and _is_number(value):
                        steps, values = columns.setdefault(key, ([], []))
                        steps.append(record["step"])
                        values.append(value)
    return {
        key: Series(np.array(steps, dtype=float), np.array(values, dtype=float))
        for key, (steps, values) in columns.items()
    }


def draw_panels(metrics: dict[str, Series]) -> list[tuple[Panel, str]]:
    """Draw every panel of which at least one metric is there: (panel, SVG)."""
    return [(panel, draw(panel, metrics)) for panel in PANELS if any(name in metrics for name in panel.metrics)]


def draw(panel: Panel, metrics: dict[str, Series]) -> str:
    """Draw one panel: each metric as logged, faint, and its moving average."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ink, faint, line = list(_COLORS)[:3]
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": panel.title, "font.family": "sans-serif", "font.size": 9}
    ):
        figure = Figure(figsize=(4.6, 2.5))
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        shown = {name: label for name, label in panel.metrics.items() if name in metrics}
        for color, (name, label) in zip(_SERIES, shown.items(), strict=False):
            series = metrics[name]
            dense = len(series.steps) > 20
            steps, values = thin(series.steps, MAX_POINTS), thin(series.values, MAX_POINTS)
            if dense:
                axes.plot(steps, values, color=color, linewidth=0.7, alpha=0.25)
            smooth = thin(moving_average(series.values), MAX_POINTS) if dense else values
            axes.plot(
                steps, smooth, color=color, linewidth=1.6, label=label, marker=None if dense else "o", markersize=3
            )
        if panel.reference is not None:
            axes.axhline(panel.reference, color=faint, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.grid(axis="y", color=line, linewidth=0.7)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(line)
        axes.tick_params(colors=faint, length=0)
        axes.set_xlabel("update", color=faint)
        axes.margins(x=0.01)
        if len(shown) > 1:
            axes.legend(frameon=False, labelcolor=ink, loc="best")
        figure.tight_layout(pad=0.4)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    return _for_html(buffer.getvalue(), panel.title)


def moving_average(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Exponential moving average, corrected for its start (as Adam does), `[n]`. What is no number is passed over."""
    result, total, weight = np.empty_like(values), 0.0, 0.0
    for i, value in enumerate(values):
        if math.isfinite(value):
            total = _SMOOTHING * total + (1 - _SMOOTHING) * value
            weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        result[i] = total / weight if weight else math.nan
    return result


def thin(values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """At most `count` of the values, evenly spread, with the first and the last."""
    return values if len(values) <= count else values[np.linspace(0, len(values) - 1, count).round().astype(int)]


def _for_html(svg: str, title: str) -> str:
    """Leave of a stand-alone SVG what stands inside HTML: no prolog, no metadata, no fixed size, no ids but those it refers to."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", svg)
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r'\sid="([\w.-]+)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = re.sub(r"font: ([\d.]+px) 'sans-serif'[^;\"]*", r"font-size: \1", svg)
    for color, variable in _COLORS.items():
        svg = svg.replace(color, variable)
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def last_values(metrics: dict[str, Series], names: Sequence[str]) -> dict[str, float]:
    """The last value of each named metric that is there."""
    return {name: float(metrics[name].values[-1]) for name in names if name in metrics}
