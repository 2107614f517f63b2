"""What `diffpo data show` does: decode some pairs of a table, and hand them to the page."""

import random
from collections.abc import Iterator
from pathlib import Path

from diffpo.data.encode import BOTH
from diffpo.data.lengths import describe_broken_image
from diffpo.data.records import Source, Table
from diffpo.data.splits import read_splits
from diffpo.errors import UserError
from diffpo.media.frames import BrokenImage, Clip, decode_whole, name_of
from diffpo.report.pairs import ShownPair, write_pairs


def show_pairs(source: Source, out: Path, count: int, shuffle: int | None) -> list[str]:
    """Write a page of the first pairs of a table, or of some drawn at random.

    Args:
        source: The table.
        out: The HTML file.
        count: How many pairs.
        shuffle: The seed with which they are drawn; None: the first ones.

    Returns:
        What is wrong with the pairs that could not be shown.

    Raises:
        UserError: The table or all its pairs cannot be read, or `out` cannot be written.
    """
    table = read_splits(source).train
    rows = list(range(len(table)))
    if shuffle is not None:
        random.Random(shuffle).shuffle(rows)
    broken: list[str] = []
    shown = list(_decode(table, rows, count, broken))
    if not shown:
        raise UserError(f"None of the pairs of {table.path} can be shown: {broken[0]}.")
    chosen = "The first pairs" if shuffle is None else f"Pairs drawn at random with seed {shuffle}"
    left_out = f"; {len(broken)} that are broken were left out" if broken else ""
    about = f"{chosen} of {len(table)} in the table{left_out}. The rejected side stands left, the chosen one right."
    write_pairs(out, f"Pairs of {Path(table.path).name}", about, shown)
    return broken


def _decode(table: Table, rows: list[int], count: int, broken: list[str]) -> Iterator[ShownPair]:
    """Decode pairs until there are enough; what is broken is noted."""
    names = table.rows.column_names
    for row in rows:
        clips: dict[str, Clip] = {}
        files: dict[str, str] = {}
        try:
            for side in BOTH:
                cell = table.cell(row, side)
                files[side] = Path(name_of(cell)).name
                clips[side] = decode_whole(cell)
        except BrokenImage as error:
            broken.append(f"row {table.origin[row]}: {describe_broken_image(side, cell, error)}")
            continue
        captions = tuple(table.captions(side, [row])[0].as_py() for side in BOTH)
        prompt = table.cell(row, "prompt")
        yield ShownPair(
            row=int(table.origin[row]),
            prompt=prompt,
            chosen=clips["chosen"],
            rejected=clips["rejected"],
            files=(files["chosen"], files["rejected"]),
            captions=None if captions == (prompt, prompt) else captions,
            preference=table.cell(row, "preference") if "preference" in names else None,
            segments=(table.cell(row, "segments") or ()) if "segments" in names else (),
        )
        count -= 1
        if not count:
            return
