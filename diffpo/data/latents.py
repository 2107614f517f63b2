"""Latents that lie beside clips which a model made: they were decoded to the clip, so that nothing has to encode it.

    CLIP.mp4, CLIP.safetensors    one tensor `latent` `[c f h w]`; its metadata name the VAE and the clip by content

Latents of another VAE, or of a clip that was replaced, are passed over. So are those of a clip that is scaled, cropped,
mirrored or shortened on its way: that one is encoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from diffpo.data.checks import is_text
from diffpo.data.contents import Contents
from diffpo.data.records import Table
from diffpo.disk.rows import key_at
from diffpo.media.bounds import BrokenImage
from diffpo.media.folder import DECODED, LATENTS


def find_latents(table: Table, side: str, contents: Contents, vae: str) -> dict[int, Path]:
    """Find the latents of one side's clips that a VAE, named by the content of its files, would decode to them."""
    found: dict[int, Path] = {}
    if not is_text(table.rows.data.schema.field(side).type):
        return found
    for row, cell in enumerate(table.column(side)):
        file = Path(cell).with_suffix(LATENTS) if cell and contents.keys[row] else None
        if file is not None and file != Path(cell) and file.is_file():
            with _opened(file) as latents:
                told = latents.metadata() or {}
            if told.get(DECODED) == f"{vae} {key_at(contents.keys, row).hex()}":
                found[row] = file
    return found


def read_latents(file: Path) -> Tensor:
    """Read them, `[c f h w]` float32; a file that is damaged is a `BrokenImage`."""
    with _opened(file) as latents:
        return latents.get_tensor("latent").float()


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as latents:
            yield latents
    except (OSError, SafetensorError) as error:
        raise BrokenImage(f"{file} is damaged ({error}): delete it, so that the clip is encoded") from error
