"""Command-line words to checked values, and checked values to words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from diffpo.config.blocks import Named, default_of, make, parse_spec
from diffpo.core.block import FINITE, Range, hints_of
from diffpo.disk.plain import read_file
from diffpo.errors import UserError

if TYPE_CHECKING:
    from diffpo.scorers import Scorer

T = TypeVar("T")
MOST_SEEDS = 10_000
"""Of each prompt."""


def from_spec(spec: str | Mapping[str, Any], known: Mapping[str, type[T]], what: str) -> T:
    """Make one of the known classes from `name` or `name,key=value,...`; `what` they are is for messages: "scorer".

    Plain values, `{name: ..., key: value}`, are the same.

    Raises:
        UserError: The name or a key is unknown, or a value wrong.
    """
    return make(Annotated[object, Named(known, what)], spec, "")


def make_scorer(spec: str | Mapping[str, Any]) -> Scorer:
    """Make a scorer from `name` or `name,key=value,...`, or of plain values; see `from_spec`."""
    from diffpo.scorers import SCORERS

    return from_spec(spec, SCORERS, "scorer")


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read `0,1,2` or `0-3` (both ends included)."""
    try:
        first, sign, last = text.partition("-")
        seeds = range(int(first), int(last) + 1) if sign else [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"seeds are {text!r}; write 0,1,2 or a range such as 0-3") from error
    if len(seeds[: MOST_SEEDS + 1]) > MOST_SEEDS:  # `len` of a range alone fails where it is astronomically long
        raise UserError(f"seeds are {text!r}; at most {MOST_SEEDS:,} are taken for each prompt.")
    return tuple(seeds)


def parse_range(text: str, what: str) -> tuple[float, float]:
    """Read LOW..HIGH, or one number for both."""
    low, dots, high = text.partition("..")
    try:
        return float(low), float(high if dots else low)
    except ValueError as error:
        raise UserError(f"{what} is {text!r}; write LOW..HIGH, such as 0.65..0.8, or one number.") from error


def read_block(text: str | None, taken: Mapping[str, Any], block: type, what: str) -> dict[str, Any]:
    """Read the keys of a block, `key=value,...` or a YAML file of them, beside those that other options give."""
    if text is None:
        return {}
    if text.endswith((".yaml", ".yml")):
        found = read_file(Path(text))
    else:
        found = parse_spec(f"{what},{text}", Named({what: block}, what))
        del found["name"]
    if not isinstance(found, dict):
        raise UserError(f"{what} {text} should hold keys with values, such as steps: 40.")
    if twice := sorted(taken.keys() & found.keys()):
        raise UserError(f"{what} sets {', '.join(twice)}, for which there are options or arguments: give it there.")
    return found


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Read HEIGHTxWIDTH."""
    if text is None:
        return None
    height, sign, width = text.partition("x")
    if not (sign and height.isdigit() and width.isdigit()):
        raise UserError(f"size is {text!r}; write HEIGHTxWIDTH, such as 512x768")
    return int(height), int(width)


def describe_fields(block: type) -> list[str]:
    """One line per field of a config dataclass: name, type, default, and the range where there is one."""
    hints, lines = hints_of(block), []
    for field in dataclasses.fields(block):
        default = "null" if field.default in (dataclasses.MISSING, None) else field.default
        default = "required" if default_of(field) is dataclasses.MISSING else default
        kind, limits = describe_type(hints[field.name])
        lines.append(f"{field.name}: {kind} = {default}" + (f" ({', '.join(limits)})" if limits else ""))
    return lines


def describe_type(hint: Any) -> tuple[str, list[str]]:
    """A field's type in words, and the ranges of its numbers."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        limits = [str(part) for part in parts[1:] if isinstance(part, Range)]
        return describe_type(parts[0])[0], [limit for limit in limits if limit != str(FINITE)]
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, parts))}]", []
    if not parts:
        return "null" if hint is NoneType else "..." if hint is Ellipsis else getattr(hint, "__name__", str(hint)), []
    inner = [describe_type(part) for part in parts]
    names, limits = [name for name, _ in inner], list(dict.fromkeys(limit for _, found in inner for limit in found))
    return (" | ".join(names) if origin in (Union, UnionType) else f"{origin.__name__}[{', '.join(names)}]"), limits
