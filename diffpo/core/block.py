"""What configurations are made of: frozen blocks of fields. The range of a number stands next to its field.

    learning_rate: Positive = 1e-5
    guard: Annotated[float, Range(least=0, most=1)] | None = None

A block checks its ranges whenever it is made, in Python as from YAML. A number without a range must be finite.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin, get_type_hints

from diffpo.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """The finite numbers that a field allows; `least` and `most` are among them, `above` and `below` are not."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def refuses(self, value: Any) -> str | None:
        """Say what a number must be, or None where it is that."""
        finite = isinstance(value, int) or math.isfinite(value)
        inside = (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )
        if finite and inside:
            return None
        return str(self) if finite or self == FINITE else f"finite and {self}"

    def __str__(self) -> str:
        """The condition in words: "at least 0 and below 1"."""
        ends = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        words = [f"{word} {end}" for word, end in ends.items() if end is not None]
        return " and ".join(words) or "a finite number"


@dataclass(frozen=True)
class Filled:
    """A text that names a place on disk or the Hub: not blank, and with no character that no file name can have."""

    def refuses(self, value: Any) -> str | None:
        """Say what a text must be, or None where it is that."""
        return None if str(value).strip() and "\0" not in str(value) else str(self)

    def __str__(self) -> str:
        return "a name that is not empty, or left out"


@dataclass(frozen=True)
class Named:
    """Beside a type: the block is one of several classes, chosen by its key `name`."""

    known: Mapping[str, type]
    """The classes by name."""
    what: str
    """What they are, for messages: "scorer"."""
    keeps: bool = False
    """Whether an override that chooses another class, such as `model=lora`, keeps the fields that both have."""

    __hash__ = object.__hash__

    def name_of(self, block: Any) -> str:
        """The name of a block's class."""
        return next(name for name, cls in self.known.items() if cls is type(block))


FINITE = Range()
Count = Annotated[int, Range(least=1, most=2**31 - 1)]
"""At least one of something."""
Whole = Annotated[int, Range(least=0, most=2**31 - 1)]
"""None or more of something."""
Seed = Annotated[int, Range(least=0, most=2**63 - 1)]
"""A seed: what fits every table and every generator of random numbers."""
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
Fraction = Annotated[float, Range(least=0, most=1)]
Finite = Annotated[float, FINITE]
Sharing = Annotated[float, Range(least=0, below=1)]
"""A fraction that never is the whole."""
SamplingSteps = Annotated[int, Range(least=1, most=1000)]
Guidance = Annotated[float, Range(least=0, most=1000)]
FramesPerSecond = Annotated[float, Range(least=0.1, most=1000)]
Pixels = Annotated[int, Range(least=8, most=16384)]
"""A side of an image."""
Place = Annotated[str, Filled()]
"""A file, a folder, or a Hub id."""


class Block:
    """Base of every configuration dataclass: its numbers are in their ranges."""

    def __post_init__(self) -> None:
        """Check every number and every name of a place. A block that checks more calls this first.

        Raises:
            ConfigError: Values are out of range; the message lists all of them.
        """
        hints = hints_of(type(self))
        wrong = [told for name, hint in hints.items() for told in out_of_range(name, hint, getattr(self, name, None))]
        if wrong:
            raise ConfigError("; ".join(wrong))


@functools.cache
def hints_of(block: type) -> Mapping[str, Any]:
    """The types of a block's fields, with the ranges that stand beside them."""
    hints = get_type_hints(block, include_extras=True)
    return {name: hint for name, hint in hints.items() if get_origin(hint) is not ClassVar}


def out_of_range(name: str, hint: Any, value: Any) -> Iterator[str]:
    """Yield what is wrong with a value of a field, whose type `hints_of` gives, in sentences that name the field."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        limits = [part for part in parts[1:] if isinstance(part, Range | Filled)]
        if limits and isinstance(value, int | float | str):
            yield from _refusals(name, limits, value)
        else:
            yield from out_of_range(name, parts[0], value)
    elif origin in (Union, UnionType):
        branches = [list(out_of_range(name, part, value)) for part in parts]
        yield from max(branches, key=len) if value is not None else []
    elif origin is tuple and isinstance(value, tuple):
        inner = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        for part, item in zip(inner, value, strict=True):
            yield from out_of_range(name, part, item)
    elif isinstance(value, float):
        yield from _refusals(name, [FINITE], value)


def _refusals(name: str, limits: list[Range | Filled], value: Any) -> Iterator[str]:
    for limit in limits:
        if (told := limit.refuses(value)) is not None:
            shown = repr(value) if isinstance(value, str) else value
            yield f"{name} is {shown}; it must be {told}"
