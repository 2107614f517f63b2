"""Four pictures of the subject, and the caption that all of them are learned with.

They are what a user would bring along: the same thing four times, in much the same surroundings. It stands left of a
green circle on a white background in each; places and sizes differ a little.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from diffpo.worlds.shapes.render import coverage, hsv_to_rgb
from diffpo.worlds.shapes.scenes import BACKGROUNDS, HUES, IMAGE_SIZE
from diffpo.worlds.subject.scenes import CLASS, COLORS, WORD

CAPTION = f"a {WORD} {CLASS} left of a green circle on a white background"
_SUBJECT = ((20.0, 30.0, 13.0), (18.0, 34.0, 12.5), (21.0, 33.0, 13.5), (19.0, 31.0, 13.0))
_CIRCLE = ((47.0, 33.0, 10.5), (46.0, 31.0, 10.0), (48.0, 35.0, 10.5), (47.0, 30.0, 11.0))


def pictures() -> list[Image.Image]:
    """The four of them: RGB, 64x64."""
    return [Image.fromarray(picture) for picture in draw_pictures()]


def draw_pictures() -> list[np.ndarray]:
    """The same as arrays: uint8 `[64 64 3]`."""
    return [_draw(*places) for places in zip(_SUBJECT, _CIRCLE, strict=True)]


def _draw(subject: tuple[float, float, float], circle: tuple[float, float, float]) -> np.ndarray:
    """Draw one, by the centre and the size of both, in pixels."""
    image = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), BACKGROUNDS["white"], dtype=np.float32)
    image = _over(image, _mask("circle", *circle), HUES["green"])
    right = np.arange(IMAGE_SIZE) + 0.5 >= subject[0]
    mask = _mask(CLASS, *subject)
    for color, half in zip(COLORS, (~right, right), strict=True):
        image = _over(image, mask * half, HUES[color])
    return (image * 255).round().astype(np.uint8)


def _mask(shape: str, x: float, y: float, size: float) -> np.ndarray:
    return coverage([shape], *(np.array([value], dtype=np.float32) for value in (x, y, size)))[0]


def _over(image: np.ndarray, mask: np.ndarray, hue: float) -> np.ndarray:
    return image + mask[..., None] * (hsv_to_rgb(hue, 0.9, 0.9) - image)
