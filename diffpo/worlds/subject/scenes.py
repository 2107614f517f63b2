"""The prompts of the subject world: captions of the shapes world with a rare word in the place of a colour.

    a h square left of a blue circle on a white background

The subject is a square, so `square` is its class, and `h` is a word that the base never met: of 30 letters, digits and
longer words it disturbs the base's images least (which draws the square red for it). The other object has none of the
subject's colours. The 384 prompts are split as the shapes world splits the same captions with `red` for `h`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from diffpo.worlds.shapes import scenes as shapes
from diffpo.worlds.shapes.scenes import OPPOSITE, ObjectSpec, SceneSpec
from diffpo.worlds.splits import SPLITS, Split, draw_prompts

WORD = "h"
"""The rare word: one token of the base's tokenizer, in no caption of the shapes world."""
CLASS = "square"
COLORS = ("red", "yellow")
"""Of the subject's left and right half."""

_STAND_IN = ObjectSpec(COLORS[0], CLASS)


@dataclass(frozen=True)
class SubjectSpec:
    """What a prompt says beside the subject."""

    other: ObjectSpec
    relation: str
    """How the subject stands to the other object."""
    background: str


def parse_caption(caption: str) -> SubjectSpec:
    """Read a prompt of the subject world.

    Raises:
        ValueError: If the caption does not name the subject once, or is not of the shapes world's grammar.
    """
    words = " ".join(caption.lower().split())
    subject = f"a {WORD} {CLASS}"
    if words.count(subject) != 1:
        raise ValueError(f"{caption!r} does not name the subject, '{subject}', once.")
    spec = shapes.parse_caption(words.replace(subject, f"a {_STAND_IN.color} {_STAND_IN.shape}"))
    if spec.first == _STAND_IN:
        return SubjectSpec(spec.second, spec.relation, spec.background)
    return SubjectSpec(spec.first, OPPOSITE[spec.relation], spec.background)


@lru_cache(maxsize=3)
def split_captions(split: Split) -> tuple[str, ...]:
    """All prompts of a split, in a fixed order.

    Raises:
        ValueError: If the split is unknown.
    """
    told = [(caption, shapes.parse_caption(caption)) for caption in shapes.split_captions(split)]
    stand_in, subject = (f"a {word} {CLASS}" for word in (COLORS[0], WORD))
    return tuple(caption.replace(stand_in, subject) for caption, spec in told if _shows_subject(spec))


def _shows_subject(spec: SceneSpec) -> bool:
    """Whether one of the two objects is the subject's stand-in, and the other has no colour of the subject."""
    one, other = sorted((spec.first, spec.second), key=lambda item: item != _STAND_IN)
    return one == _STAND_IN and other.color not in COLORS


def sample_prompts(split: Split, n: int, seed: int = 0) -> list[str]:
    """`n` prompts of a split, different ones as long as the split lasts; the order depends on nothing but the seed.

    Raises:
        ValueError: If the split is unknown or `n` is negative.
    """
    return draw_prompts(split_captions(split), n, seed)


__all__ = ["CLASS", "COLORS", "SPLITS", "WORD", "SubjectSpec", "parse_caption", "sample_prompts", "split_captions"]
