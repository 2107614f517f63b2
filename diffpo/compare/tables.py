"""Comparisons as tables for others to read: CSV, LaTeX, and what a terminal shows beside `comparison_table`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffpo.compare.comparison import Comparison, ScorerResult, number, p_value, percent, plus_minus, signed, span
from diffpo.compare.stats import Estimate, WinRate
from diffpo.compare.tournament import Ranking
from diffpo.disk.files import write_file

if TYPE_CHECKING:
    from rich.table import Table

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    }
)


def write_csv(path: str | Path, comparisons: Sequence[Comparison]) -> None:
    """Write one row per comparison, scorer and category (empty: all prompts); what is not known is empty."""
    rows = [row for comparison in comparisons for row in _csv_rows(comparison)]
    output = io.StringIO()
    writer = csv.DictWriter(output, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows)
    write_file(Path(path), output.getvalue().encode())


def write_latex(path: str | Path, comparisons: Sequence[Comparison]) -> None:
    """Write a `tabular` of the package booktabs, one block per comparison."""
    lines = [
        f"% {comparison.model} against {comparison.baseline}, {comparison.mode}: {comparison.n_prompts} prompts, "
        f"{comparison.n_pairs} comparisons, {comparison.level:.0%} intervals".replace("\n", " ")
        for comparison in comparisons
    ]
    lines += [
        "% p by Holm over all scorers and models; MDE: win rate from even found in 80% of such comparisons, in points",
        r"\begin{tabular}{lrrrrrr}",
        r"\toprule",
        r"Scorer & Baseline & Model & Difference & Win rate & $p$ & MDE \\",
    ]
    for comparison in comparisons:
        title = f"{latex(comparison.model)} against {latex(comparison.baseline)}"
        lines += [r"\midrule", rf"\multicolumn{{7}}{{l}}{{{title}}} \\"]
        lines += [_latex_row(result) for result in comparison.results]
    marks = any(result.in_loop for comparison in comparisons for result in comparison.results)
    lines += [r"\bottomrule", r"\end{tabular}"] + ([r"\par\smallskip $^*$ used in training"] if marks else [])
    write_file(Path(path), ("\n".join(lines) + "\n").encode())


def latex(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return " ".join(text.split()).translate(_LATEX)


def strata_table(comparison: Comparison) -> Table | None:
    """Win rates per category by the first scorer, for the terminal; None where there are no categories."""
    from rich.markup import escape

    first = comparison.results[0]
    if not first.strata:
        return None
    table = _table(
        f"by category, judged by {escape(first.scorer)}", ("prompts", "difference", "win rate", "+-", "p (BH)")
    )
    for stratum in first.strata:
        rate = stratum.win_rate
        table.add_row(
            escape(stratum.category),
            str(rate.n_prompts),
            signed(stratum.difference.estimate),
            f"{percent(rate.estimate)} [dim]{span(rate, percent)}[/dim]",
            plus_minus(rate, percent).removeprefix("+- "),
            p_value(stratum.adjusted_p),
        )
    return table


def ranking_table(ranking: Ranking) -> Table:
    """Elo and the matrix of win rates, for the terminal: each row against each column."""
    from rich.markup import escape

    labels = [rank.model for rank in ranking.ranks]
    mark = " * (used in training)" if ranking.in_loop else ""
    table = _table(f"{escape(ranking.scorer)}{mark}: win rate of the row", ("Elo", *map(escape, labels)))
    for rank in ranking.ranks:
        rates = (ranking.win_rate(rank.model, other) for other in labels)
        table.add_row(
            escape(rank.model),
            f"{rank.elo:+.0f}\n[dim]{rank.elo_low:+.0f} to {rank.elo_high:+.0f}[/dim]",
            *("-" if rate is None else percent(rate) for rate in rates),
        )
    return table


def _table(title: str, headers: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("", overflow="fold")
    for header in headers:
        table.add_column(header, justify="right")
    return table


def _csv_rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    names = {"model": comparison.model, "baseline": comparison.baseline, "mode": comparison.mode}
    for result in comparison.results:
        of = {**names, "scorer": result.scorer}
        means = {"model_mean": result.model_mean, "baseline_mean": result.baseline_mean}
        last = {"adjustment": "holm", "adjusted_p": result.adjusted_p, "in_loop": result.in_loop}
        yield {**of, "category": "", **means, **_csv_cells(result.difference, result.win_rate), **last}
        for stratum in result.strata:
            means = {"model_mean": "", "baseline_mean": ""}
            last |= {"adjustment": "benjamini-hochberg", "adjusted_p": stratum.adjusted_p}
            cells = _csv_cells(stratum.difference, stratum.win_rate)
            yield {**of, "category": stratum.category, **means, **cells, **last}


def _csv_cells(difference: Estimate, rate: WinRate) -> dict[str, Any]:
    cells: dict[str, Any] = {"prompts": rate.n_prompts, "comparisons": rate.n_pairs}
    for name, estimate in (("difference", difference), ("win_rate", rate)):
        cells |= {
            name: estimate.estimate,
            f"{name}_low": estimate.ci_low,
            f"{name}_high": estimate.ci_high,
            f"{name}_detectable": estimate.detectable,
        }
    cells |= {"wins": rate.wins, "ties": rate.ties, "losses": rate.losses}
    return cells | {"p_value": rate.p_value, "test": rate.test}


def _latex_row(result: ScorerResult) -> str:
    rate, difference = result.win_rate, result.difference
    cells = (
        latex(result.scorer) + ("$^*$" if result.in_loop else ""),
        number(result.baseline_mean),
        number(result.model_mean),
        f"{signed(difference.estimate)} [{signed(difference.ci_low)}, {signed(difference.ci_high)}]",
        f"{percent(rate.estimate)} [{percent(rate.ci_low)}, {percent(rate.ci_high)}]",
        p_value(result.adjusted_p),
        percent(rate.detectable).removesuffix("%"),
    )
    first, *rest = cells
    return " & ".join([first, *(f"${_math(cell)}$" for cell in rest)]) + r" \\"


def _math(text: str) -> str:
    """A number or an interval in math mode."""
    return text.replace("%", r"\%").replace(" [", r"\;[")
