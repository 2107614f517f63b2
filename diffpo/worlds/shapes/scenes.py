"""The grammar of the shapes world: captions, what they ask for, and where the objects stand.

A caption names two coloured shapes, how they stand to each other, and a background:

    a red circle left of a blue square on a white background

`SceneSpec` is what the caption says, `Scene` adds what it leaves open (sizes, positions, saturation, brightness): that
is where taste has room. The caption space is finite (5,760 captions) and split once for all into train, validation and
heldout.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from diffpo.worlds.splits import SPLITS, Split, draw_prompts, split_by_hash

IMAGE_SIZE = 64
HUES = {"red": 0.0, "yellow": 52.0, "green": 125.0, "cyan": 185.0, "blue": 232.0, "purple": 292.0}  # degrees
COLORS = tuple(HUES)
SHAPES = ("circle", "square", "triangle", "cross")
RELATIONS = ("left of", "right of", "above", "below")
BACKGROUNDS = {"white": 0.96, "gray": 0.33, "black": 0.04}  # gray level
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

# Half-width, reach upwards and reach downwards of each shape, per unit of size.
EXTENTS = {
    "circle": (1.0, 1.0, 1.0),
    "square": (0.9, 0.9, 0.9),
    "triangle": (1.126, 1.3, 0.65),
    "cross": (1.1, 1.1, 1.1),
    "bar": (1.3, 0.6, 0.6),  # of the moving world
}


_GRAMMAR = "a {} {} {} a {} {} on a {} background"
_WORDS = (COLORS, SHAPES, RELATIONS, COLORS, SHAPES, BACKGROUNDS)
_CAPTION = re.compile(_GRAMMAR.format(*(f"({'|'.join(words)})" for words in _WORDS)))


@dataclass(frozen=True)
class ObjectSpec:
    """One object as the caption names it."""

    color: str
    shape: str


@dataclass(frozen=True)
class SceneSpec:
    """All that a caption says: `first` stands in `relation` to `second`."""

    first: ObjectSpec
    second: ObjectSpec
    relation: str
    background: str

    @property
    def caption(self) -> str:
        """The one caption of this spec; `parse_caption` is its inverse."""
        first, second = self.first, self.second
        return _GRAMMAR.format(first.color, first.shape, self.relation, second.color, second.shape, self.background)

    def mirrored(self) -> SceneSpec:
        """The other caption of the same picture: "a left of b" becomes "b right of a"."""
        return SceneSpec(self.second, self.first, OPPOSITE[self.relation], self.background)


@dataclass(frozen=True)
class Placement:
    """What the caption leaves open about one object: pixels, HSV `saturation` and `value`, `hue_shift` in degrees."""

    x: float
    y: float
    size: float
    saturation: float
    value: float
    hue_shift: float = 0.0


@dataclass(frozen=True)
class Scene:
    """One picture: a spec, the placements of its two objects, and the background's gray level."""

    spec: SceneSpec
    first: Placement
    second: Placement
    background_level: float


def parse_caption(caption: str) -> SceneSpec:
    """Read a caption of the grammar; case, runs of spaces and a full stop at the end do not matter.

    Raises:
        ValueError: If the caption is not of the grammar, or both objects have the same colour.
    """
    match = _CAPTION.fullmatch(" ".join(caption.lower().split()).rstrip(". "))
    if match is None:
        raise ValueError(
            f"{caption!r} is not a caption of the shapes world. Expected: "
            f"'{_GRAMMAR.format('COLOR', 'SHAPE', 'RELATION', 'COLOR', 'SHAPE', 'BACKGROUND')}' "
            f"with COLOR in {list(COLORS)}, SHAPE in {list(SHAPES)}, RELATION in {list(RELATIONS)}, "
            f"BACKGROUND in {list(BACKGROUNDS)}."
        )
    color1, shape1, relation, color2, shape2, background = match.groups()
    if color1 == color2:
        raise ValueError(f"{caption!r}: the two objects must differ in colour (the verifier tells them apart by it).")
    return SceneSpec(ObjectSpec(color1, shape1), ObjectSpec(color2, shape2), relation, background)


@lru_cache(maxsize=1)
def all_captions() -> tuple[str, ...]:
    """Every caption of the world, in a fixed order."""
    return tuple(_GRAMMAR.format(*words) for words in product(*_WORDS) if words[0] != words[3])


def split_of(caption: str) -> Split:
    """The split a caption belongs to: 75 % train, 10 % validation, 15 % heldout, by hash.

    "a left of b" and "b right of a" show the same picture, so the hash is taken of the alphabetically first of the
    two: no picture of a held-out caption can be met in training under its other name.
    """
    spec = parse_caption(caption)
    key = min(spec.caption, spec.mirrored().caption)
    return split_by_hash(key)


@lru_cache(maxsize=3)
def split_captions(split: Split) -> tuple[str, ...]:
    """All captions of a split, in a fixed order.

    Raises:
        ValueError: If the split is unknown.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose one of {list(SPLITS)}")
    return tuple(caption for caption in all_captions() if split_of(caption) == split)


def sample_prompts(split: Split, n: int, seed: int = 0) -> list[str]:
    """`n` prompts of a split, different ones as long as the split lasts; the order depends on nothing but the seed.

    Raises:
        ValueError: If the split is unknown or `n` is negative.
    """
    return draw_prompts(split_captions(split), n, seed)
