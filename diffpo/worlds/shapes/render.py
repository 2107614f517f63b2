"""Draws scenes: antialiased, by signed distance functions, a whole batch at a time.

The signed distance d of a pixel's centre to the shape's edge (negative inside) gives the share of the pixel that is
covered, clip(1/2 - d, 0, 1); the object's colour is mixed with what lies below by that share. All in numpy: these
arrays are too small for threads to be of use.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffpo.worlds.shapes.scenes import COLORS, HUES, IMAGE_SIZE, SHAPES, Placement, Scene

_COS30 = 3**0.5 / 2


def render(scene: Scene) -> np.ndarray:
    """Draw one scene: uint8 `[64 64 3]`."""
    return to_uint8(render_batch([scene]))[0]


def render_batch(scenes: Sequence[Scene]) -> Tensor:
    """Draw scenes: float32 `[n 3 64 64]` in [0, 1]."""
    level = np.array([scene.background_level for scene in scenes], dtype=np.float32)
    image = np.broadcast_to(level[:, None, None, None], (len(scenes), 3, IMAGE_SIZE, IMAGE_SIZE))
    for which in ("first", "second"):
        placements = [getattr(scene, which) for scene in scenes]
        objects = [getattr(scene.spec, which) for scene in scenes]
        x, y, size = (np.array([getattr(p, name) for p in placements], dtype=np.float32) for name in ("x", "y", "size"))
        alpha = coverage([o.shape for o in objects], x, y, size)
        rgb = _rgb([o.color for o in objects], placements)
        image = image + alpha[:, None] * (rgb[:, :, None, None] - image)
    return torch.from_numpy(np.ascontiguousarray(image))


def to_uint8(images: Tensor) -> np.ndarray:
    """`[n 3 h w]` in [0, 1] -> uint8 `[n h w 3]`."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def coverage(shapes: Sequence[str], x: np.ndarray, y: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The share of each pixel that a shape covers, `[n 64 64]`; centres and sizes in pixels, each `[n]`."""
    grid = np.arange(IMAGE_SIZE, dtype=np.float32) + 0.5
    drawn = zip(shapes, x, y, size, strict=True)
    distances = [signed_distance(shape, grid[None, :] - x, grid[:, None] - y, size) for shape, x, y, size in drawn]
    return np.clip(0.5 - np.stack(distances), 0, 1)


def signed_distance(shape: str, dx: np.ndarray, dy: np.ndarray, size: float) -> np.ndarray:
    """Distance to a shape's edge, negative inside, at offsets to the right of its centroid and below it; in pixels.

    Raises:
        ValueError: If the shape is unknown.
    """
    if shape == "circle":
        return np.hypot(dx, dy) - size
    if shape == "square":
        return _box(dx, dy, 0.9 * size, 0.9 * size)
    if shape == "triangle":  # three half planes; the corners are 1.3 sizes away, the edges half of that
        return np.maximum(dy, np.abs(dx) * _COS30 - 0.5 * dy) - 0.65 * size
    if shape == "cross":
        return np.minimum(_box(dx, dy, 1.1 * size, 0.38 * size), _box(dx, dy, 0.38 * size, 1.1 * size))
    if shape == "bar":  # of the moving world
        return _box(dx, dy, 1.3 * size, 0.6 * size)
    raise ValueError(f"unknown shape {shape!r}; choose one of {list(SHAPES)}")


def _box(dx: np.ndarray, dy: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    qx, qy = np.abs(dx) - half_width, np.abs(dy) - half_height
    return np.hypot(np.maximum(qx, 0), np.maximum(qy, 0)) + np.minimum(np.maximum(qx, qy), 0)


def hsv_to_rgb(hue: np.ndarray | float, saturation: np.ndarray | float, value: np.ndarray | float) -> np.ndarray:
    """HSV to RGB, `[... 3]`; hue in degrees, numbers or arrays `[... 1]`.

    Channel n = 5, 3, 1 is v - v s clip(min(k, 4 - k), 0, 1) with k = (n + hue / 60) mod 6.
    """
    k = (np.array([5.0, 3.0, 1.0]) + hue / 60) % 6
    return (value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)).astype(np.float32)


def _rgb(colors: Sequence[str], placements: Sequence[Placement]) -> np.ndarray:
    """The colours of objects, `[n 3]`."""
    assert all(color in COLORS for color in colors)
    hue = np.array([[HUES[c] + p.hue_shift] for c, p in zip(colors, placements, strict=True)])
    saturation = np.array([[p.saturation] for p in placements])
    value = np.array([[p.value] for p in placements])
    return hsv_to_rgb(hue, saturation, value)
