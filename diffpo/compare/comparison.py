"""What a comparison of two models found: as a value, as JSON, and as a table for the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffpo.compare.pairing import Mode
from diffpo.compare.power import least_p_value
from diffpo.compare.stats import Estimate, WinRate
from diffpo.compare.users import UserWinRate
from diffpo.compare.votes import HUMAN
from diffpo.disk.files import without_nan, write_json
from diffpo.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table


WHAT: dict[Mode, str] = {
    "same-seed": "comparisons on the same prompts and seeds",
    "all-pairs": "comparisons of all images of the same prompts",
    "median-image": "comparisons of the median images of a prompt",
    "best-of-n": "comparisons of the best images of a prompt",
    "mean-over-seeds": "comparisons of the mean scores of a prompt",
}
"""What is counted."""


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """One category of prompts."""

    category: str
    win_rate: WinRate
    difference: Estimate
    adjusted_p: float
    """Of the win rate, by Benjamini and Hochberg over the categories: they are explored, not claimed."""


@dataclass(frozen=True, kw_only=True)
class ScorerResult:
    """What one scorer says."""

    scorer: str
    model_mean: float
    """Mean over prompts of the mean over seeds."""
    baseline_mean: float
    difference: Estimate
    win_rate: WinRate
    provenance: dict[str, Any] = field(default_factory=dict)
    adjusted_p: float = math.nan
    """The win rate's p-value by Holm over all scorers and baselines of the claim."""
    in_loop: str = ""
    """Why a gain on this scorer is no independent evidence; empty as far as is known."""
    strata: tuple[Stratum, ...] = ()
    """By category of prompts."""
    users: UserWinRate | None = None
    """Over users, where it is known who chose."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model against a baseline; the first scorer is the one that the headline speaks of."""

    model: str
    baseline: str
    n_prompts: int
    n_pairs: int
    level: float
    results: tuple[ScorerResult, ...]
    notes: tuple[str, ...] = ()
    """What a reader must know to judge the numbers."""
    mode: Mode = "same-seed"
    """Which images were compared; see `pairing`."""
    prompt_set: str = ""
    """Name and hash of the prompts, as far as the media folders know them."""

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `unclear`: whether the first scorer's interval of the win rate excludes one half.

        Always unclear where prompts are so few that no test could tell.
        """
        first = self.results[0].win_rate
        if least_p_value(first.n_prompts) > 1 - self.level:
            return "unclear"
        return "better" if first.ci_low > 0.5 else "worse" if first.ci_high < 0.5 else "unclear"

    @property
    def headline(self) -> str:
        """Who wins, by how much, how sure: one or two sentences."""
        first = self.results[0]
        opening = {
            "better": f"{self.model} beats {self.baseline}.",
            "worse": f"{self.model} loses to {self.baseline}.",
            "unclear": f"No clear difference between {self.model} and {self.baseline}.",
        }[self.verdict]
        rate = first.win_rate
        sure = "" if math.isnan(rate.ci_low) else f" ({self.level:.0%} interval {span(rate, percent)})"
        human = first.scorer == HUMAN
        return (
            f"{opening} Judged by {'people' if human else first.scorer}, {self.model} wins {percent(rate.estimate)} of "
            f"{self.n_pairs} {'votes' if human else WHAT[self.mode]}{sure}.{' Ties count half.' if rate.ties else ''}"
            f"{f' But {first.in_loop}' if first.in_loop else ''}"
        )


def write_comparison(path: str | Path, comparison: Comparison) -> None:
    """Write a comparison as JSON; an unknown bound is null."""
    write_json(Path(path), comparison_record(comparison))


def comparison_record(comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON can say it."""
    return without_nan({**asdict(comparison), "verdict": comparison.verdict, "headline": comparison.headline})


def read_comparison(path: str | Path) -> Comparison:
    """Read what `write_comparison` wrote.

    Raises:
        UserError: If it is none.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        del value["verdict"], value["headline"]
        results = tuple(_read_result(result) for result in value.pop("results"))
        return Comparison(results=results, notes=tuple(value.pop("notes")), **value)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). `diffpo compare` writes it.") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is no comparison of `diffpo compare`: {error}") from error


def comparison_table(comparison: Comparison) -> Table:
    """The comparison as a table that fits a terminal of 80 columns: what belongs to an estimate stands below it."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=f"{escape(comparison.model)} against {escape(comparison.baseline)}: "
        f"{comparison.n_prompts} prompts, {comparison.n_pairs} comparisons",
        box=box.SIMPLE_HEAD,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        show_edge=False,
        caption=_legend(comparison),
        caption_justify="left",
    )
    table.add_column("scorer", overflow="fold")
    for header in ("baseline", "model", "difference", "win rate", "p"):
        table.add_column(header, justify="right", no_wrap=True)
    for result in comparison.results:
        rate, difference = result.win_rate, result.difference
        table.add_row(
            f"{escape(result.scorer)}{' *' if result.in_loop else ''}\n[dim]{rate.wins}/{rate.ties}/{rate.losses} "
            "W/T/L[/dim]",
            number(result.baseline_mean),
            number(result.model_mean),
            f"{signed(difference.estimate)}\n[dim]{span(difference, signed)}\n{plus_minus(difference, number)}[/dim]",
            f"{percent(rate.estimate)}\n[dim]{span(rate, percent)}\n{plus_minus(rate, percent)}[/dim]",
            f"{p_value(rate.p_value)}\n[dim]{p_value(result.adjusted_p)}[/dim]",
        )
    return table


def _legend(comparison: Comparison) -> str:
    legend = (
        f"below each: {comparison.level:.0%} interval; p by Holm over all scorers; with +-, the smallest true effect "
        "that 80% of such comparisons would find"
    )
    return legend + ("; * used in training" if any(result.in_loop for result in comparison.results) else "")


def number(value: float) -> str:
    """A score with about four digits."""
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def percent(value: float) -> str:
    """A share in percent, with one decimal."""
    return "?" if math.isnan(value) else f"{100 * value:.1f}%"


def p_value(value: float) -> str:
    """A p-value, never as zero."""
    return "?" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def signed(value: float) -> str:
    """A difference of scores, with its sign and about four digits."""
    return "?" if math.isnan(value) else f"{value:+.2f}" if abs(value) >= 10 else f"{value:+.3f}"


def span(estimate: Estimate, show: Callable[[float], str]) -> str:
    """An interval in words."""
    return f"{show(estimate.ci_low)} to {show(estimate.ci_high)}"


def plus_minus(estimate: Estimate, show: Callable[[float], str]) -> str:
    """The smallest effect that would have been found, with its sign."""
    return "+- ?" if math.isnan(estimate.detectable) else f"+- {show(estimate.detectable)}"


def _read_result(record: dict[str, Any]) -> ScorerResult:
    strata, users = record.pop("strata", ()), record.pop("users", None)
    return ScorerResult(
        strata=tuple(Stratum(**_read_estimates(stratum)) for stratum in strata),
        users=UserWinRate(**{**users, "macro": Estimate(**_with_nan(users["macro"]))}) if users else None,
        **_read_estimates(record),
    )


def _read_estimates(record: dict[str, Any]) -> dict[str, Any]:
    difference, rate = Estimate(**_with_nan(record.pop("difference"))), WinRate(**_with_nan(record.pop("win_rate")))
    return {**_with_nan(record), "difference": difference, "win_rate": rate}


def _with_nan(record: dict[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in record.items()}
