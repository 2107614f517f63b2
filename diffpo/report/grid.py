"""Picture grids: a row per prompt, a column per model, captions beside them."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffpo.compare.numbers import number
from diffpo.compare.pairing import Key, by_image
from diffpo.disk.files import check_output, write_json
from diffpo.disk.published import published
from diffpo.errors import UserError
from diffpo.media.folder import SCORES, Media, open_clip, read_media
from diffpo.media.sheet import Cell, Row, draw_grid, write_sheet
from diffpo.scorers.scores import read_scores


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
    out = Path(out)
    check_output(out)
    read = [read_media(folder) for folder in folders]
    media, labels = by_image(read), [items[0].model for items in read]
    scores = [_scores(folder, scorer) for folder in folders]
    rows, record = [], []
    for prompt, places in _choose(media, prompts, seeds, shuffle):
        items = {(i, place): images[prompt, place] for i, images in enumerate(media) for place in places}
        values = {(i, place): scores[i].get(item.file) for (i, place), item in items.items()}
        cells, images = [], []
        for (i, place), item in items.items():
            score = values[i, place]
            known = [value for (_, other), value in values.items() if other == place and value is not None]
            note = [f"seed {item.seed}"] if len(places) > 1 and item.seed is not None else []
            note += [number(score)] if score is not None else []
            best = score is not None and score == max(known) > min(known)
            cells.append(Cell(open_clip(folders[i], item), ": ".join(note), best))
            path = published(str(Path(folders[i]) / item.file))
            images.append({"model": item.model, "seed": item.seed, "file": path, "score": score})
        rows.append(Row(prompt, tuple(cells)))
        record.append({"prompt": prompt, "images": images})
    blanks = [""] * (len(rows[0].cells) // len(media) - 1)
    write_sheet(out, draw_grid([name for label in labels for name in (label, *blanks)], rows, cell=cell))
    chosen = "the first prompts" if shuffle is None else f"prompts drawn at random with seed {shuffle}"
    write_json(out.with_suffix(".json"), {"chosen": chosen, "scorer": scorer, "models": labels, "rows": record})
    return out


def _choose(
    media: Sequence[Mapping[Key, Media]], prompts: int, seeds: int, shuffle: int | None
) -> list[tuple[str, list[int]]]:
    """Prompts and seeds that every folder has: as many seeds for each prompt, at most `seeds`."""
    common: dict[str, list[int]] = {}
    for prompt, place in media[0]:
        common.setdefault(prompt, []).extend([place] if all((prompt, place) in images for images in media) else [])
    most = min(seeds, max(map(len, common.values())))
    if not most:
        raise UserError("the folders have no prompt and seed in common, so there is nothing to put side by side.")
    chosen = [prompt for prompt, shared in common.items() if len(shared) >= most]
    if shuffle is not None:
        random.Random(shuffle).shuffle(chosen)
    return [(prompt, common[prompt][:most]) for prompt in chosen[:prompts]]


def _scores(folder: str | Path, scorer: str | None) -> dict[str, float]:
    if scorer is None:
        return {}
    table = read_scores(folder)
    found = {row.file: row.score for row in table.rows if row.scorer == table.called(scorer)}
    if not found:
        raise UserError(
            f"{Path(folder) / SCORES} has no scores of {scorer!r}. Run `diffpo score {folder} --scorer {scorer}`."
        )
    return found
