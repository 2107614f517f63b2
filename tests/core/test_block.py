"""Blocks: the range of a number stands beside its field, and is checked wherever the block is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import pytest

from diffpo.core.block import FINITE, Block, Count, Fraction, Place, Positive, Range, Seed
from diffpo.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Some(Block):
    rate: Positive = 1.0
    share: Fraction | None = None
    seeds: tuple[Seed, ...] = (0,)
    size: tuple[Count, Count] = (1, 1)
    odd: Annotated[float, Range(above=-1, below=1)] = 0.0
    free: float = 0.0
    path: Place | None = None
    texts: tuple[str, ...] | Place = ()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"rate": 0.0}, "rate is 0.0; it must be above 0"),
        ({"rate": math.inf}, "rate is inf; it must be finite and above 0"),
        ({"rate": math.nan}, "rate is nan; it must be finite and above 0"),
        ({"share": 1.5}, "share is 1.5; it must be at least 0 and at most 1"),
        ({"seeds": (0, -1)}, "seeds is -1; it must be at least 0 and at most 9223372036854775807"),
        ({"seeds": (2**63,)}, "seeds is 9223372036854775808"),
        ({"size": (1, 0)}, "size is 0; it must be at least 1"),
        ({"odd": 1.0}, "odd is 1.0; it must be above -1 and below 1"),
        ({"free": -math.inf}, "free is -inf; it must be a finite number"),
        ({"path": " "}, "path is ' '; it must be a name that is not empty, or left out"),
        ({"path": "a\0b"}, "it must be a name"),
        ({"texts": ""}, "texts is ''; it must be a name"),
        ({"rate": -1.0, "free": math.nan}, "rate is -1.0; it must be above 0; free is nan; it must be a finite number"),
    ],
)
def test_what_is_out_of_range_is_named(given, told):
    with pytest.raises(ConfigError) as caught:
        Some(**given)
    assert told in str(caught.value)


def test_what_is_in_range_is_left_alone():
    given = {"rate": 10**400, "share": 0.0, "seeds": (2**63 - 1,), "free": -1e300, "path": "a b", "texts": ("",)}
    assert Some(**given).rate == 10**400
    assert Some(share=None, path=None).share is None
    assert FINITE.refuses(1e308) is None
