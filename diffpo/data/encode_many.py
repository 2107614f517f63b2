"""Encode many images or prompts: decoded ahead, encoded one by one or several together.

One by one is a function of the row alone, to the bit. Together is what a GPU needs: images of one size are put into
batches, a batch is prepared while the encoder works on the one before, and what comes out agrees to 1e-4 (in float32)
whatever else was in the batch. A broken image is passed on in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from diffpo.data.encode import Encoder, as_text, encode_frames, encode_text, moments
from diffpo.data.images import Preparation, Prepared
from diffpo.disk.ahead import WORKERS, ahead, groups
from diffpo.disk.processes import cores, helpers, perform
from diffpo.disk.rows import Row
from diffpo.media.frames import BrokenImage

if TYPE_CHECKING:
    from datasets import Dataset

    from diffpo.data.records import Source

MANY = 512
"""Images that are worth the seconds in which processes start."""
MOST_PROCESSES = 16
"""That decode, unless `data.workers` asks for more."""
SIZES = 4
"""Batches that are looked at together where images have several sizes."""

Found = Prepared | BrokenImage
"""What became of an image: its pixels, or why there are none."""


@dataclass(frozen=True)
class Decoding:
    """Decodes and crops the images of a table, by their places: row by row, and side by side."""

    preparation: Preparation
    rows: Dataset

    def __call__(self, place: int) -> Found:
        """Decode one image."""
        sides = self.preparation.sides
        index, number = divmod(place, len(sides))
        try:
            return self.preparation.prepare(self.rows[index], index, sides[number])
        except BrokenImage as error:
            return error


@contextmanager
def decoded(task: Decoding, places: Sequence[int], batch: int) -> Iterator[Iterator[Found]]:
    """Decode images ahead, in order: by threads, or by processes where `data.workers` or the work asks for them.

    Args:
        task: Whose images.
        places: Which of them.
        batch: Images that are encoded together; those of two batches may wait.
    """
    wanted = task.preparation.source.workers
    if wanted is None:  # one image after the other keeps no more than a few threads busy
        wanted = min(MOST_PROCESSES, cores()) if batch > 1 and len(places) >= MANY else 0
    workers = wanted or WORKERS
    depth = max(2 * workers, 2 * batch)
    if not wanted:
        yield ahead(task, places, workers=workers, depth=depth, weigh=_bytes)
        return
    remedy = (
        "Run the command again with fewer (data.workers), or with data.workers=0, which decodes by threads. A script "
        'of your own that trains must do so under `if __name__ == "__main__":`, as each process imports it.'
    )
    with helpers(task, wanted, remedy=remedy, modules=["datasets"]) as pool:
        yield ahead(perform, places, pool=pool, depth=depth, weigh=_bytes)


def _bytes(found: Found) -> int:
    return 0 if isinstance(found, BrokenImage) else found.pixels.nbytes


def encode_images(found: Iterable[Found], encoder: Encoder, source: Source, batch: int) -> Iterator[Row]:
    """Encode images in order, `batch` of them together: a row for each, which says why where one is broken."""
    if batch == 1:
        for each in found:
            yield (
                broken_row(each)
                if isinstance(each, BrokenImage)
                else image_row(each, encode_frames(each, encoder, source))
            )
        return
    seen = batch * (SIZES if source.buckets else 1)
    before: Callable[[], list[Row]] = list
    for group in groups(found, seen):
        started = _start(group, encoder, source, batch)
        yield from before()
        before = started
    yield from before()


def _start(group: Sequence[Found], encoder: Encoder, source: Source, batch: int) -> Callable[[], list[Row]]:
    """Begin to encode images; what comes out waits for the encoder and gives their rows."""
    begun: list[tuple[list[int], Callable[[], Any]]] = []
    alike: dict[tuple[int, ...], list[int]] = {}
    for place, each in enumerate(group):
        if isinstance(each, Prepared) and each.latent is None:
            alike.setdefault(each.pixels.shape, []).append(place)
    for shape, places in alike.items():
        for part in groups(places, batch if shape[0] == 1 else 1):  # a clip is a batch of its own
            begun.append((part, encoder.start_media([group[place].frames for place in part])))

    def finish() -> list[Row]:
        encoded = {place: pair for part, wait in begun for place, pair in zip(part, wait(), strict=True)}
        return [_finish(each, encoded.get(place), encoder, source) for place, each in enumerate(group)]

    return finish


def _finish(each: Found, encoded: tuple[Tensor, Tensor] | None, encoder: Encoder, source: Source) -> Row:
    if isinstance(each, BrokenImage):
        return broken_row(each)
    made = encode_frames(each, encoder, source) if encoded is None else moments(each, *encoded, source)
    return image_row(each, made)


def broken_row(error: BrokenImage) -> Row:
    """What is kept of an image that cannot be used."""
    return Row({"broken": str(error)})


def image_row(prepared: Prepared, encoded: Mapping[str, Tensor]) -> Row:
    """What is kept of an image or a clip."""
    return Row({"target": list(prepared.pixels.shape[:3])}, encoded)


def encode_texts(prompts: Iterable[str], encoder: Encoder, source: Source, batch: int) -> Iterator[Row]:
    """Encode prompts in order, `batch` of them together, and note after how many tokens an encoder cuts each."""
    alone = partial(encode_text, encoder=encoder, source=source)
    for group in groups(prompts, batch):
        if batch == 1:
            made = map(alone, group)
        else:
            made = (as_text(prompt, x, source) for prompt, x in zip(group, encoder.encode_prompts(group), strict=True))
        for prompt, states in zip(group, made, strict=True):
            yield Row({"cut": [limit for limit, count in encoder.count_cut([prompt]).items() if count]}, states)
