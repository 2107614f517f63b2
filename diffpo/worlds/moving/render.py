"""Draws clips: antialiased, as the shapes world draws its pictures, a whole batch at a time."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffpo.worlds.moving.scenes import FRAME_SIZE, FRAMES, PALE, Clip, segment_of
from diffpo.worlds.shapes.render import hsv_to_rgb, signed_distance
from diffpo.worlds.shapes.scenes import HUES


def render(clip: Clip) -> np.ndarray:
    """Draw one clip: uint8 `[9 32 32 3]`."""
    return to_uint8(render_batch([clip]))[0]


def render_batch(clips: Sequence[Clip]) -> Tensor:
    """Draw clips: float32 `[n 3 9 32 32]` in [0, 1], the layout of video autoencoders."""
    return torch.from_numpy(np.stack([_draw(clip) for clip in clips]))


def to_uint8(clips: Tensor) -> np.ndarray:
    """`[n 3 f h w]` in [0, 1] -> uint8 `[n f h w 3]`."""
    return (clips.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 4, 1).cpu().numpy()


def _draw(clip: Clip) -> np.ndarray:
    """One clip, float32 `[3 9 32 32]`."""
    grid = np.arange(FRAME_SIZE, dtype=np.float32) + 0.5
    x, y = np.array([clip.centre(frame) for frame in range(FRAMES)], dtype=np.float32).T
    dx, dy = grid[None, None, :] - x[:, None, None], grid[None, :, None] - y[:, None, None]
    alpha = np.clip(0.5 - signed_distance(clip.spec.shape, dx, dy, clip.size), 0, 1)
    full, pale = (
        hsv_to_rgb(HUES[clip.spec.color] + clip.hue_shift, saturation, clip.value)
        for saturation in (clip.saturation, PALE * clip.saturation)
    )
    frames = [pale if frame and segment_of(frame) >= clip.pale_from else full for frame in range(FRAMES)]
    rgb = np.stack(frames, axis=1)[:, :, None, None]
    return clip.background_level + alpha * (rgb - np.float32(clip.background_level))
