"""Text states of different lengths in one batch: zeros behind the shorter ones, which masks hide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

if TYPE_CHECKING:
    from diffpo.core.types import Condition


def of_one_length(parts: Sequence[Condition]) -> Sequence[Condition]:
    """Pad the texts of conditions, and their second texts where they have any, to the longest; see `Condition.cat`."""
    return _second_of_one_length(_first_of_one_length(parts))


def _first_of_one_length(parts: Sequence[Condition]) -> Sequence[Condition]:
    lengths = [part.text.shape[1] for part in parts]
    if all(part.mask is None for part in parts):
        assert len(set(lengths)) == 1, f"texts of {sorted(set(lengths))} tokens were given without masks"
        return parts
    if len(set(lengths)) == 1 and all(part.mask is not None for part in parts):
        return parts

    def padded(part: Condition, more: int) -> Condition:
        mask = torch.ones_like(part.text[..., 0], dtype=torch.bool) if part.mask is None else part.mask
        return replace(part, text=pad(part.text, (0, 0, 0, more)), mask=pad(mask, (0, more)))

    return [padded(part, max(lengths) - length) for part, length in zip(parts, lengths, strict=True)]


def _second_of_one_length(parts: Sequence[Condition]) -> Sequence[Condition]:
    """Pad second streams of text states with zeros, which their masks hide."""
    for key in [key for key in parts[0].extra if key.endswith("_mask")]:
        states, longest = key.removesuffix("_mask"), max(part.extra[key].shape[1] for part in parts)

        def padded(part: Condition, key: str = key, states: str = states, longest: int = longest) -> Condition:
            more = longest - part.extra[key].shape[1]
            both = {states: pad(part.extra[states], (0, 0, 0, more)), key: pad(part.extra[key], (0, more))}
            return replace(part, extra=part.extra | both)

        parts = [padded(part) for part in parts]
    return parts
