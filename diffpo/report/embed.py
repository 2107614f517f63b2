"""Pictures and clips as text inside a page, which browsers show without a file beside it."""

import base64
import io
from typing import Any

from PIL import Image

from diffpo.media.frames import FPS, Clip
from diffpo.media.sheet import fit
from diffpo.media.videos import write_preview

LARGEST_EDGE = 448
"""Pixels; larger images are embedded at this size."""
TINY = 128
"""Images up to this size are embedded exactly."""
SMALLEST_CLIP = 256
"""Clips are enlarged to about this size by a whole factor: a video keeps colours at half the resolution."""
MOST_FRAMES = 240
"""Of a clip; longer ones are embedded with fewer frames per second."""


def data_uri(clip: Clip) -> str:
    """A picture as text that browsers show: small ones exactly, as PNG; large ones reduced, as WebP. A clip: as mp4."""
    if len(clip.frames) > 1:
        return _as_text("video/mp4", _preview(clip))
    frame = _reduced(clip.first)
    tiny = max(frame.size) <= TINY
    how: dict[str, Any] = {"format": "PNG", "optimize": True} if tiny else {"format": "WEBP", "quality": 85}
    buffer = io.BytesIO()
    frame.save(buffer, **how)
    return _as_text(f"image/{'png' if tiny else 'webp'}", buffer.getvalue())


def _preview(clip: Clip) -> bytes:
    frames = clip.some(MOST_FRAMES)
    seconds = len(clip.frames) / (clip.fps or FPS)
    return write_preview([_even(_enlarged(_reduced(frame))) for frame in frames], len(frames) / seconds)


def _reduced(frame: Image.Image) -> Image.Image:
    return fit(frame, LARGEST_EDGE) if max(frame.size) > LARGEST_EDGE else frame


def _enlarged(frame: Image.Image) -> Image.Image:
    """Enlarge a small frame so that each pixel becomes a square."""
    factor = max(1, SMALLEST_CLIP // max(frame.size))
    return frame.resize((frame.width * factor, frame.height * factor), Image.Resampling.NEAREST)


def _even(frame: Image.Image) -> Image.Image:
    """Leave out a last row or column where there is an odd number."""
    width, height = (max(2, side - side % 2) for side in frame.size)
    return frame if (width, height) == frame.size else frame.crop((0, 0, width, height))


def _as_text(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
