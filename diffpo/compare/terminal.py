"""What was found, as tables for the terminal."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from diffpo.compare.numbers import number, p_value, percent, plus_minus, signed, span
from diffpo.compare.result import Comparison, Ranking, Tournament


def print_result(found: Tournament, console: Console) -> None:
    """Print all tables and the headline; of two models, also what limits the numbers."""
    for ranking in found.rankings:
        console.print(ranking_table(ranking))
    for comparison in found.comparisons:
        console.print(comparison_table(comparison))
        if not found.rankings and comparison.results[0].strata:
            console.print(strata_table(comparison))
    print(found.headline)
    if not found.rankings:
        for note in found.comparisons[0].notes:
            print(f"- {note}")


def comparison_table(comparison: Comparison) -> Table:
    """The comparison as a table that fits a terminal of 80 columns: what belongs to an estimate stands below it."""
    title = (
        f"{escape(comparison.model)} against {escape(comparison.baseline)}: "
        f"{comparison.n_prompts} prompts, {comparison.n_pairs} comparisons"
    )
    legend = (
        f"below each: {comparison.level:.0%} interval; p by Holm over all scorers; with +-, the smallest true effect "
        "that 80% of such comparisons would find"
    )
    if any(result.in_loop for result in comparison.results):
        legend += "; * used in training"
    table = _table(title, ("scorer", "baseline", "model", "difference", "win rate", "p"), caption=legend)
    for result in comparison.results:
        rate, difference = result.win_rate, result.difference
        name = escape(result.scorer) + (" *" if result.in_loop else "")
        table.add_row(
            _above(name, f"{rate.wins}/{rate.ties}/{rate.losses} W/T/L"),
            number(result.baseline_mean),
            number(result.model_mean),
            _above(signed(difference.estimate), f"{span(difference, signed)}\n{plus_minus(difference, number)}"),
            _above(percent(rate.estimate), f"{span(rate, percent)}\n{plus_minus(rate, percent)}"),
            _above(p_value(rate.p_value), p_value(result.adjusted_p)),
        )
    return table


def strata_table(comparison: Comparison) -> Table:
    """Win rates per category by the first scorer."""
    first = comparison.results[0]
    headers = ("", "prompts", "difference", "win rate", "+-", "p (BH)")
    table = _table(f"by category, judged by {escape(first.scorer)}", headers)
    for stratum in first.strata:
        rate = stratum.win_rate
        table.add_row(
            escape(stratum.category),
            str(rate.n_prompts),
            signed(stratum.difference.estimate),
            f"{percent(rate.estimate)} [dim]{span(rate, percent)}[/dim]",
            percent(rate.detectable),
            p_value(stratum.adjusted_p),
        )
    return table


def ranking_table(ranking: Ranking) -> Table:
    """Elo and the matrix of win rates: each row against each column."""
    labels = [rank.model for rank in ranking.ranks]
    mark = " * (used in training)" if ranking.in_loop else ""
    table = _table(f"{escape(ranking.scorer)}{mark}: win rate of the row", ("", "Elo", *map(escape, labels)))
    for rank in ranking.ranks:
        cells = (ranking.cell(rank.model, other) for other in labels)
        table.add_row(
            escape(rank.model),
            _above(f"{rank.elo:+.0f}", f"{rank.elo_low:+.0f} to {rank.elo_high:+.0f}"),
            *("-" if cell is None else percent(cell.win_rate.estimate) for cell in cells),
        )
    return table


def _above(text: str, below: str) -> str:
    return f"{text}\n[dim]{below}[/dim]"


def _table(title: str, headers: Sequence[str], caption: str | None = None) -> Table:
    """The first column holds names, the others numbers."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False)
    table.caption, table.caption_justify = caption, "left"
    table.add_column(headers[0], overflow="fold")
    for header in headers[1:]:
        table.add_column(header, justify="right", no_wrap=caption is not None)
    return table
