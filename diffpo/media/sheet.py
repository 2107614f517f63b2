"""Contact sheets: rows of pictures with a caption beside them and a note below each; a clip is a strip of frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from diffpo.disk.files import write_file
from diffpo.media.frames import Clip

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

FRAMES = 4
"""Of a clip, at most, spread evenly from its first to its last."""
INK, FAINT, GOOD, PAPER, LINE = "#1b1c1e", "#6b6f76", "#13795b", "#ffffff", "#e4e6ea"


@dataclass(frozen=True)
class Cell:
    """One picture or clip, and a line below it."""

    clip: Clip
    note: str = ""
    best: bool = False
    """Whether the note is the best of its row."""


@dataclass(frozen=True)
class Row:
    """One prompt and its pictures."""

    caption: str
    cells: tuple[Cell, ...]


def draw_grid(columns: Sequence[str], rows: Sequence[Row], *, cell: int = 256) -> Image:
    """Draw a grid.

    Args:
        columns: Headers; an empty one leaves the one before it standing for both.
        rows: With at most as many cells as there are columns.
        cell: Width and height that an image, or a frame of a clip, is scaled to fit.

    Returns:
        RGB, as wide and high as needed: captions are wrapped and make their row higher.
    """
    from PIL import Image, ImageDraw

    text, small, gap = max(13, cell // 14), max(12, cell // 18), max(8, cell // 24)
    margin, frames = 2 * gap, min(FRAMES, max(len(each.clip.frames) for row in rows for each in row.cells))
    column = frames * cell + (frames - 1) * _space(cell)
    headers = [_Text(header, column, text, bold=True) for header in columns]
    left, top = margin + cell + 2 * gap, margin + max(header.height for header in headers) + gap
    places = [left + i * (column + gap) for i in range(len(columns))]
    width = places[-1] + column + margin
    drawn, heights = [], []
    for row in rows:
        caption = _Text(row.caption, cell, text, limit=2 * cell // _line_height(text))
        cells = [(_strip(each.clip, frames, cell), _Text(each.note, column, small), each.best) for each in row.cells]
        bottoms = [strip.height + (note.height and note.height + gap // 2) for strip, note, _ in cells]
        drawn.append((caption, cells))
        heights.append(max(caption.height, *bottoms) + gap + margin)
    canvas = Image.new("RGB", (width, top + sum(heights)), PAPER)
    draw = ImageDraw.Draw(canvas)
    for x, header in zip(places, headers, strict=True):
        header.draw(draw, x, margin, INK)
    for (caption, cells), height in zip(drawn, heights, strict=True):
        draw.line((margin, top, width - margin, top), fill=LINE)
        y = top + gap
        caption.draw(draw, margin, y, INK)
        for x, (strip, note, best) in zip(places, cells, strict=False):
            canvas.paste(strip, (x, y))
            draw.rectangle((x, y, x + strip.width - 1, y + strip.height - 1), outline=LINE)
            note.draw(draw, x, y + strip.height + gap // 2, GOOD if best else FAINT)
        top += height
    return canvas


def fit(image: Image, edge: int) -> Image:
    """Scale to fit a square; small images by a whole factor first, so that their pixels stay even."""
    from PIL import Image as Pillow

    factor = edge / max(image.size)
    if factor >= 2 and max(image.size) <= 128:
        whole = int(factor)
        image = image.resize((image.width * whole, image.height * whole), Pillow.Resampling.NEAREST)
        factor = edge / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image if size == image.size else image.resize(size, Pillow.Resampling.LANCZOS)


def write_sheet(path: Path, sheet: Image) -> None:
    """Write a sheet as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda file: sheet.save(file, format="PNG", optimize=True))


def _strip(clip: Clip, count: int, edge: int) -> Image:
    """Frames side by side, each scaled to fit a square, with a little space between them."""
    from PIL import Image

    frames = [fit(frame, edge) for frame in clip.some(count)]
    step = frames[0].width + _space(edge)
    strip = Image.new("RGB", (len(frames) * step - _space(edge), frames[0].height), PAPER)
    for i, frame in enumerate(frames):
        strip.paste(frame, (i * step, 0))
    return strip


def _space(edge: int) -> int:
    """Pixels between the frames of a clip."""
    return max(1, edge // 64)


class _Text:
    """A text broken into lines no wider than `width` pixels, between words where that is possible."""

    def __init__(self, text: str, width: int, size: int, *, bold: bool = False, limit: int | None = None):
        file = "DejaVuSans-Bold.ttf" if bold else "" if text.isascii() else "DejaVuSans.ttf"  # Pillow's has few letters
        self.font, self.size = _font(size, file), size
        self.lines = wrap(text, width, self.font, limit)
        self.height = len(self.lines) * _line_height(size)

    def draw(self, draw: ImageDraw, x: int, y: int, fill: str) -> None:
        for i, line in enumerate(self.lines):
            draw.text((x, y + i * _line_height(self.size)), line, font=self.font, fill=fill)


def wrap(text: str, width: int, font: FreeTypeFont, limit: int | None = None) -> list[str]:
    """Break a text into lines of at most `width` pixels; after `limit` lines it ends with a whole word and dots."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        while word:
            candidate = f"{line} {word}" if line else word
            if font.getlength(candidate) <= width:
                line, word = candidate, ""
            elif line:
                lines.append(line)
                line = ""
            else:  # one long word, or a language without spaces: break inside
                count = next((n for n in range(len(word), 1, -1) if font.getlength(word[:n]) <= width), 1)
                lines.append(word[:count])
                word = word[count:]
    lines += [line] if line else []
    if limit is not None and len(lines) > limit:
        last = lines[limit - 1]
        while last and font.getlength(f"{last} ...") > width:
            last = last.rpartition(" ")[0] if " " in last else last[:-1]
        lines = [*lines[: limit - 1], f"{last} ..."]
    return lines


@lru_cache(maxsize=32)
def _font(size: int, file: str) -> FreeTypeFont:
    """Pillow's own font, or one of those that come with matplotlib."""
    from PIL import ImageFont

    if not file:
        return ImageFont.load_default(size)
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / file, size)


def _line_height(size: int) -> int:
    return round(1.35 * size)
