"""Picture grids: a row per prompt, a column per model, captions beside them."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffpo.errors import UserError
from diffpo.evaluate.compare import number
from diffpo.evaluate.media import SCORES, Media, open_image, read_media, write_atomic, write_json
from diffpo.evaluate.scores import read_scores

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

INK, FAINT, GOOD, PAPER, LINE = "#1b1c1e", "#6b6f76", "#13795b", "#ffffff", "#e4e6ea"


@dataclass(frozen=True)
class Cell:
    """One picture, and a line below it."""

    image: Image
    note: str = ""
    best: bool = False
    """Whether the note is the best of its row."""


@dataclass(frozen=True)
class Row:
    """One prompt and its pictures."""

    caption: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class _Layout:
    """Measures in pixels, all in proportion to the cell."""

    cell: int

    @property
    def text(self) -> int:
        return max(13, self.cell // 14)

    @property
    def small(self) -> int:
        return max(12, self.cell // 18)

    @property
    def gap(self) -> int:
        return max(8, self.cell // 24)

    @property
    def margin(self) -> int:
        return 2 * self.gap

    @property
    def caption(self) -> int:
        return self.cell


def write_grid(
    out: str | Path,
    folders: Sequence[str | Path],
    *,
    prompts: int = 6,
    seeds: int = 1,
    scorer: str | None = None,
    cell: int = 256,
    shuffle: int | None = None,
) -> Path:
    """Draw media folders side by side, and say beside the PNG, in a JSON of the same name, what is on it.

    Args:
        out: The PNG.
        folders: One per column (or group of columns), the baseline first.
        prompts: How many rows.
        seeds: How many images per prompt and model, each a column.
        scorer: Write this scorer's score below each image; the folders must have been scored by it.
        cell: Width of an image in the grid, in pixels.
        shuffle: Choose prompts at random, with this seed; None takes the first ones.

    Returns:
        The path of the PNG.

    Raises:
        UserError: If a folder cannot be read, or they have no prompt and seed in common.
    """
    if min(prompts, seeds, cell, len(folders)) < 1:
        raise UserError("a grid needs at least one folder, one prompt, one seed and a cell of one pixel.")
    out, media = Path(out), [_by_prompt(folder) for folder in folders]
    scores = [_scores(folder, scorer) for folder in folders]
    shown = _choose(media, prompts, shuffle)
    rows, record = [], []
    for prompt in shown:
        common = [seed for seed in media[0][prompt] if all(seed in images[prompt] for images in media)][:seeds]
        items = [(i, images[prompt][seed]) for i, images in enumerate(media) for seed in common]
        values = [scores[i].get(item.file) for i, item in items]
        rows.append(
            Row(
                prompt,
                tuple(_cell(folders[i], item, seeds, v, values) for (i, item), v in zip(items, values, strict=True)),
            )
        )
        record.append(
            {
                "prompt": prompt,
                "images": [
                    {"model": item.model, "seed": item.seed, "file": str(Path(folders[i]) / item.file), "score": value}
                    for (i, item), value in zip(items, values, strict=True)
                ],
            }
        )
    labels = [next(iter(next(iter(images.values())).values())).model for images in media]
    columns = [label for label in labels for _ in range(max(len(row.cells) for row in rows) // len(media))]
    _save(draw_grid(columns, rows, cell=cell), out)
    chosen = "the first prompts" if shuffle is None else f"prompts drawn at random with seed {shuffle}"
    write_json(out.with_suffix(".json"), {"chosen": chosen, "scorer": scorer, "columns": columns, "rows": record})
    return out


def draw_grid(columns: Sequence[str], rows: Sequence[Row], *, cell: int = 256) -> Image:
    """Draw a grid.

    Args:
        columns: Headers.
        rows: With at most as many cells as there are columns.
        cell: Width and height that an image is scaled to fit.

    Returns:
        RGB, as wide and high as needed: captions are wrapped and make their row higher.
    """
    from PIL import Image, ImageDraw

    layout = _Layout(cell)
    header = _wrap_all(columns, cell, _font(layout.text, bold=True))
    captions = [
        _wrap(row.caption, layout.caption, _font(layout.text), limit=2 * cell // _line(layout.text)) for row in rows
    ]
    images = [[fit(c.image, cell) for c in row.cells] for row in rows]
    heights = [
        _row_height(layout, row, pictures, lines) for row, pictures, lines in zip(rows, images, captions, strict=True)
    ]
    top = layout.margin + max(map(len, header)) * _line(layout.text) + layout.gap
    width = 2 * layout.margin + layout.caption + len(columns) * (cell + layout.gap) + layout.gap
    canvas = Image.new("RGB", (width, top + sum(heights) + len(rows) * layout.margin), PAPER)
    draw = ImageDraw.Draw(canvas)
    left = layout.margin + layout.caption + 2 * layout.gap
    for i, lines in enumerate(header):
        _lines(draw, left + i * (cell + layout.gap), layout.margin, lines, layout.text, INK, bold=True)
    for row, pictures, lines, height in zip(rows, images, captions, heights, strict=True):
        draw.line((layout.margin, top - layout.gap // 2, width - layout.margin, top - layout.gap // 2), fill=LINE)
        y = top + layout.gap // 2
        _lines(draw, layout.margin, y, lines, layout.text, INK)
        for i, (item, picture) in enumerate(zip(row.cells, pictures, strict=True)):
            x = left + i * (cell + layout.gap)
            canvas.paste(picture, (x, y))
            note = _wrap(item.note, cell, _font(layout.small))
            _lines(draw, x, y + picture.height + layout.gap // 2, note, layout.small, GOOD if item.best else FAINT)
        top += height + layout.margin
    return canvas


def fit(image: Image, edge: int) -> Image:
    """Scale to fit a square, keeping the aspect ratio: small images by a whole factor first, so that their pixels stay even."""
    from PIL import Image as Pillow

    factor = edge / max(image.size)
    if factor >= 2 and max(image.size) <= 128:
        whole = int(factor)
        image = image.resize((image.width * whole, image.height * whole), Pillow.Resampling.NEAREST)
        factor = edge / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image if size == image.size else image.resize(size, Pillow.Resampling.LANCZOS)


def _row_height(layout: _Layout, row: Row, pictures: Sequence[Image], lines: Sequence[str]) -> int:
    notes = max((len(_wrap(c.note, layout.cell, _font(layout.small))) for c in row.cells), default=0)
    below = notes * _line(layout.small) + layout.gap // 2 if notes else 0
    return max(max((p.height for p in pictures), default=0) + below, len(lines) * _line(layout.text))


def _lines(draw: ImageDraw, x: int, y: int, lines: Sequence[str], size: int, fill: str, bold: bool = False) -> None:
    for line in lines:
        draw.text((x, y), line, font=_font(size, bold=bold, text=line), fill=fill)
        y += _line(size)


def _wrap_all(texts: Sequence[str], width: int, font: FreeTypeFont) -> list[list[str]]:
    return [_wrap(text, width, font) for text in texts]


def _wrap(text: str, width: int, font: FreeTypeFont, limit: int | None = None) -> list[str]:
    """Break a text into lines no wider than `width` pixels, between words where that is possible; shorten it to `limit` lines."""
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
            else:  # one word, or a language without spaces: break inside
                count = next((n for n in range(len(word), 1, -1) if font.getlength(word[:n]) <= width), 1)
                lines.append(word[:count])
                word = word[count:]
    lines += [line] if line else []
    if limit is not None and len(lines) > limit:
        last = lines[limit - 1].split(" ")
        while len(last) > 1 and font.getlength(" ".join([*last, "..."])) > width:
            last.pop()
        lines = [*lines[: limit - 1], " ".join([*last, "..."])]
    return lines


@lru_cache(maxsize=32)
def _load_font(size: int, name: str) -> FreeTypeFont:
    from PIL import ImageFont

    if name == "pillow":
        return ImageFont.load_default(size=size)
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def _font(size: int, *, bold: bool = False, text: str = "") -> FreeTypeFont:
    """Pillow's own font; for letters that it has not, and for bold, the ones that come with matplotlib."""
    if bold:
        return _load_font(size, "DejaVuSans-Bold.ttf")
    latin = all(c.isascii() for c in unicodedata.normalize("NFC", text))
    return _load_font(size, "pillow" if latin else "DejaVuSans.ttf")


def _line(size: int) -> int:
    return round(1.35 * size)


def _cell(folder: str | Path, item: Media, seeds: int, score: float | None, row: Sequence[float | None]) -> Cell:
    parts = [f"seed {item.seed}"] if seeds > 1 else []
    parts += [number(score)] if score is not None else []
    known = [value for value in row if value is not None]
    best = score is not None and score == max(known) and min(known) < max(known)
    return Cell(open_image(folder, item), "  ".join(parts), best)


def _by_prompt(folder: str | Path) -> dict[str, dict[int, Media]]:
    images: dict[str, dict[int, Media]] = {}
    for item in read_media(folder):
        images.setdefault(item.prompt, {})[item.seed] = item
    return images


def _choose(media: Sequence[dict[str, dict[int, Media]]], count: int, shuffle: int | None) -> list[str]:
    """Prompts that every folder has with at least one common seed."""
    common = [p for p in media[0] if all(p in m for m in media) and set.intersection(*(set(m[p]) for m in media))]
    if not common:
        raise UserError("the folders have no prompt and seed in common, so there is nothing to put side by side.")
    if shuffle is not None:
        random.Random(shuffle).shuffle(common)
    return common[:count]


def _scores(folder: str | Path, scorer: str | None) -> dict[str, float]:
    if scorer is None:
        return {}
    found = {row.file: row.score for row in read_scores(folder).rows if row.scorer == scorer}
    if not found:
        raise UserError(
            f"{Path(folder) / SCORES} has no scores of {scorer!r}. Run `diffpo score {folder} --scorer {scorer}`."
        )
    return found


def _save(image: Image, out: Path) -> None:
    import io

    out.parent.mkdir(parents=True, exist_ok=True)
    buffer: Any = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    write_atomic(out, buffer.getvalue())
