"""The grammar of the moving world: captions, what they ask for, and how the shape moves.

A caption names a coloured shape, where it moves, perhaps how fast, and a background:

    a red circle moving left slowly on a light background
    a blue bar moving up on a dark background

`ClipSpec` is what the caption says, `Clip` adds what it leaves open: size, place, colour tone and, where no word for it
stands, speed. That is where preference training can take motion away without making one caption wrong. The caption
space is finite (432 captions) and split once for all into train, validation and heldout.

A clip has nine frames in four segments. Segment 0 is frames 0 to 2, each further segment two frames: the frames that a
causal video autoencoder with temporal factor 2 keeps in its latent frames 0 and 1, 2, 3, 4.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from diffpo.worlds.shapes.scenes import COLORS
from diffpo.worlds.splits import SPLITS, Split, draw_prompts, split_by_hash

FRAME_SIZE = 32
FRAMES = 9
FPS = 8
SEGMENTS = 4
SEGMENT_SECONDS = FRAMES / FPS / SEGMENTS  # 0.28125, the `data.segment_seconds` of its pair tables
MIDDLE = (FRAMES - 1) / 2  # the frame in which a shape is at its clip's place

SHAPES = ("circle", "triangle", "bar")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Unit steps to the right and downwards."""
SPEEDS = {"slowly": (0.6, 0.9), "": (0.6, 1.9), "fast": (1.5, 1.9)}
"""Pixels per frame by the caption's word; "" is a caption without one."""
BACKGROUNDS = {"light": 0.65, "dark": 0.35}
"""Gray levels. They lie close together: a background fills the picture and would else be all that a model learns."""

PALE = 0.5
"""What remains of the saturation of a colour that has turned pale."""

_GRAMMAR = "a {} {} moving {}{} on a {} background"
_WORDS = (COLORS, SHAPES, DIRECTIONS, SPEEDS, BACKGROUNDS)
_CAPTION = re.compile(
    "a ({}) ({}) moving ({})(?: ({}))? on a ({}) background".format(
        *("|".join(word for word in words if word) for words in _WORDS)
    )
)


@dataclass(frozen=True)
class ClipSpec:
    """All that a caption says; `speed` is "" where it names none."""

    color: str
    shape: str
    direction: str
    speed: str
    background: str

    @property
    def caption(self) -> str:
        """The one caption of this spec; `parse_caption` is its inverse."""
        speed = f" {self.speed}" if self.speed else ""
        return _GRAMMAR.format(self.color, self.shape, self.direction, speed, self.background)


@dataclass(frozen=True)
class Clip:
    """One clip: a spec and what it leaves open.

    `x`, `y` and `size` are in pixels, the centre as it stands in the middle frame; `speed` in pixels per frame;
    `saturation` and `value` as in HSV; `hue_shift` in degrees; `background_level` a gray level in [0, 1].
    """

    spec: ClipSpec
    x: float
    y: float
    size: float
    speed: float
    saturation: float
    value: float
    hue_shift: float
    background_level: float
    pale_from: int = SEGMENTS
    """The segment from which on the colour is pale: a fault. `SEGMENTS`: it stays as it is."""

    def centre(self, frame: float) -> tuple[float, float]:
        """Where the shape's centroid stands in a frame, in pixels from the left and from the top."""
        right, down = DIRECTIONS[self.spec.direction]
        way = self.speed * (frame - MIDDLE)
        return self.x + right * way, self.y + down * way


def segment_of(frame: int) -> int:
    """The segment that a frame of a clip belongs to: nine frames in four equal parts of time."""
    assert 0 <= frame < FRAMES, frame
    return frame * SEGMENTS // FRAMES


def parse_caption(caption: str) -> ClipSpec:
    """Read a caption of the grammar; case, runs of spaces and a full stop at the end do not matter.

    Raises:
        ValueError: If the caption is not of the grammar.
    """
    match = _CAPTION.fullmatch(" ".join(caption.lower().split()).rstrip(". "))
    if match is None:
        raise ValueError(
            f"{caption!r} is not a caption of the moving world. Expected: "
            f"'{_GRAMMAR.format('COLOR', 'SHAPE', 'DIRECTION', ' SPEED', 'BACKGROUND')}' "
            f"with COLOR in {list(COLORS)}, SHAPE in {list(SHAPES)}, DIRECTION in {list(DIRECTIONS)}, "
            f"SPEED in {[word for word in SPEEDS if word]} or left out, BACKGROUND in {list(BACKGROUNDS)}."
        )
    color, shape, direction, speed, background = match.groups()
    return ClipSpec(color, shape, direction, speed or "", background)


@lru_cache(maxsize=1)
def all_captions() -> tuple[str, ...]:
    """Every caption of the world, in a fixed order."""
    return tuple(ClipSpec(*words).caption for words in product(*_WORDS))


def split_of(caption: str) -> Split:
    """The split a caption belongs to: 75 % train, 10 % validation, 15 % heldout, by hash."""
    key = parse_caption(caption).caption
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
    """`n` prompts of a split, each as often as the others; the order depends on nothing but the seed.

    Raises:
        ValueError: If the split is unknown or `n` is negative.
    """
    return draw_prompts(split_captions(split), n, seed)
