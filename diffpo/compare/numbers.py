"""How numbers are written for people: in the terminal, in LaTeX, in the report."""

import math
from collections.abc import Callable

from diffpo.compare.stats import Estimate


def number(value: float, sign: str = "") -> str:
    """A score with about four digits."""
    return f"{value:{sign}.{2 if abs(value) >= 10 else 3}f}"


def percent(value: float) -> str:
    """A share in percent, with one decimal."""
    return "?" if math.isnan(value) else f"{100 * value:.1f}%"


def points(share: float) -> str:
    """A difference of shares in percentage points."""
    return percent(share).removesuffix("%")


def p_value(value: float) -> str:
    """A p-value, never as zero."""
    return "?" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def signed(value: float) -> str:
    """A difference of scores, with its sign and about four digits."""
    return "?" if math.isnan(value) else number(value, "+")


def span(estimate: Estimate, show: Callable[[float], str]) -> str:
    """An interval in words."""
    return f"{show(estimate.ci_low)} to {show(estimate.ci_high)}"


def plus_minus(estimate: Estimate, show: Callable[[float], str]) -> str:
    """The smallest effect that would have been found, with its sign."""
    return "+- ?" if math.isnan(estimate.detectable) else f"+- {show(estimate.detectable)}"
