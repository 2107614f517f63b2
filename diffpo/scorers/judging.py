"""Judge the media of a folder: each is decoded once for all judges, and what was judged once is not judged again.

What a judge found lies in a `RowStore` whose recipe is the judge's provenance; the key of a row is the content of the
file together with what it was judged for. So it does not matter who asked first, in which folder, or how many processes
share the work; a kill loses the group that was being judged.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from rich.console import Console

from diffpo.disk.ahead import WORKERS, ahead, groups
from diffpo.disk.files import hash_of, sweep
from diffpo.disk.progress import progress
from diffpo.disk.rows import MOST_FILES, Row, RowStore, digest
from diffpo.media.folder import Media, open_clip, read_file
from diffpo.media.frames import BrokenImage, Clip

GROUP = 64
"""Media that are kept together on disk, unless there are so many that this gave more than `MOST_FILES` files."""
_BATCH, _BATCH_PIXELS = 64, 64_000_000  # what judges are handed at a time: so many media, or so many pixels


@dataclass(frozen=True)
class Judge:
    """Something that looks at media, and where what it found is kept."""

    store: RowStore
    look: Callable[[Sequence[Clip], Sequence[Media]], Iterable[Row]]
    """What it finds in decoded media: one row for each."""
    question: Callable[[Media], str]
    """What a medium is judged for beside its content, such as its prompt."""
    known: Mapping[bytes, Row] = field(default_factory=dict)
    """Rows that are kept elsewhere, such as in a table beside the media, by `key`."""

    def key(self, content: str, item: Media) -> bytes:
        """The key of a medium's row; `content` is the digest of its file."""
        return key_of(content, item.frames, self.question(item))

    def __contains__(self, key: bytes) -> bool:
        return key in self.known or key in self.store

    def __getitem__(self, key: bytes) -> Row:
        return self.known[key] if key in self.known else self.store[key]


@dataclass
class Judged:
    """What a call of `judge_media` looked at."""

    contents: dict[str, str] = field(default_factory=dict)
    """The digest of each file that is whole, by its name."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Files that cannot be decoded, and why."""


def key_of(content: str, frames: int, question: str) -> bytes:
    """The key of a row: what a file holds, how many of its frames are a medium, and what that was judged for."""
    return digest(content, str(frames), question)


def judge_media(
    home: Path,
    media: Sequence[Media],
    judges: Sequence[Judge],
    title: str,
    *,
    console: Console | None = None,
    rank: int = 0,
    world: int = 1,
) -> Judged:
    """Let judges look at media that they do not know yet, and keep what they find.

    Args:
        home: What the files are relative to.
        media: Images and clips.
        judges: Each is handed a medium only if it does not know it.
        title: What is done, for the progress.
        console: Where to show progress; standard error by default.
        rank: Which of several processes this is; each takes every so many media.
        world: How many processes there are.

    Returns:
        What this process looked at. A file that cannot be decoded is left out.

    Raises:
        UserError: If a file is missing, or whatever a judge raises. What was found before is kept.
    """
    share = media[rank::world]
    judged = Judged()
    for judge in judges:
        sweep(judge.store.folder)
    seen = ahead(partial(_see, home, judges), share, workers=WORKERS, depth=_BATCH, weigh=_bytes)
    with progress(title, len(share), console=console, shown=rank == 0) as advance:
        for group in groups(range(len(share)), max(GROUP, -(-len(share) // MOST_FILES))):
            _judge_group(home, islice(seen, len(group)), judges, judged)
            advance(len(group))
    for judge in judges:
        judge.store.refresh()
    return judged


@dataclass(frozen=True)
class _Seen:
    """What is to be judged of a file."""

    item: Media
    content: str | None
    """The digest of the file; None where it is broken."""
    clip: Clip | None
    """Its frames, unless all judges know it."""
    broken: str | None = None


def _see(home: Path, judges: Sequence[Judge], item: Media) -> _Seen:
    """Read a file, and decode it if a judge does not know it; threads do it ahead."""
    try:
        content = hash_of(read_file(home, item))
        unknown = any(judge.key(content, item) not in judge for judge in judges)
        return _Seen(item, content, open_clip(home, item) if unknown else None)
    except BrokenImage as error:
        return _Seen(item, None, None, str(error))


def _bytes(seen: _Seen) -> int:
    return 0 if seen.clip is None else seen.clip.nbytes


def _judge_group(home: Path, group: Iterable[_Seen], judges: Sequence[Judge], judged: Judged) -> None:
    """Judge what is not known of a group, and keep what was found as one file for each judge."""
    found: list[dict[bytes, Row]] = [{} for _ in judges]
    try:
        for batch in _batches(_whole(home, group, judged)):
            for judge, rows in zip(judges, found, strict=True):
                todo = {judge.key(judged.contents[item.file], item): (clip, item) for item, clip in batch}
                todo = {key: two for key, two in todo.items() if key not in rows and key not in judge}
                if todo:
                    clips, items = zip(*todo.values(), strict=True)
                    rows.update(zip(todo, judge.look(clips, items), strict=True))
    finally:  # an image that a judge refuses does not cost what it found of the others
        for judge, rows in zip(judges, found, strict=True):
            if rows:
                judge.store.add(list(rows), rows.values())


def _whole(home: Path, group: Iterable[_Seen], judged: Judged) -> Iterator[tuple[Media, Clip]]:
    """Note what files hold, leave out what is broken, and go on with what was decoded."""
    for seen in group:
        if seen.content is None:
            judged.left_out[str(home / seen.item.file)] = str(seen.broken)
            continue
        judged.contents[seen.item.file] = seen.content
        if seen.clip is not None:
            yield seen.item, seen.clip


def _batches(decoded: Iterable[tuple[Media, Clip]]) -> Iterator[list[tuple[Media, Clip]]]:
    """Cut decoded media into batches that are bounded in number and in pixels."""
    batch: list[tuple[Media, Clip]] = []
    pixels = 0
    for item, clip in decoded:
        batch.append((item, clip))
        pixels += len(clip.frames) * clip.first.width * clip.first.height
        if len(batch) == _BATCH or pixels >= _BATCH_PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch
