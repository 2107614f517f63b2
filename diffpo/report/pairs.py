"""The page of a pair table: what was preferred to what, clips side by side and in step, labels of segments below."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffpo.disk.files import check_output
from diffpo.media.frames import Clip
from diffpo.report.embed import data_uri
from diffpo.report.examples import Example, Picture
from diffpo.report.page import write_page


@dataclass(frozen=True)
class ShownPair:
    """One row of a table."""

    row: int
    """Its number in the table."""
    prompt: str
    chosen: Clip
    rejected: Clip
    files: tuple[str, str]
    """What both are called."""
    captions: tuple[str, str] | None = None
    """Of either side, where they have their own."""
    preference: float | None = None
    """P(chosen > rejected), where the table says it."""
    segments: Sequence[int] = ()
    """Labels: 1 where the chosen one is better, -1 where the rejected one is, 0 a tie."""

    @property
    def note(self) -> str:
        """What stands below the prompt."""
        clip = self.chosen
        rate = "" if clip.fps is None else f" at {clip.fps:g} per second"
        said = [f"row {self.row}", f"{clip.first.width}x{clip.first.height}"]
        said += [f"{len(clip.frames)} frames{rate}"] if len(clip.frames) > 1 else []
        said += [] if self.preference is None else [f"preference {self.preference:.3g}"]
        return ", ".join(said)


def write_pairs(out: str | Path, title: str, about: str, pairs: Iterable[ShownPair]) -> Path:
    """Write a page that holds some pairs of a table.

    Args:
        out: The HTML file.
        title: Heading.
        about: What is shown, and how it was chosen.
        pairs: What is shown.

    Raises:
        UserError: `out` cannot be written.
    """
    out = Path(out)
    check_output(out)
    return write_page(out, "pairs.html.j2", title=title, about=about, examples=list(map(_example, pairs)))


def _example(pair: ShownPair) -> Example:
    """The rejected side stands first, as the baseline does in a report."""
    sides = (("rejected", pair.rejected), ("chosen", pair.chosen))
    captions = dict(zip(("chosen", "rejected"), pair.captions or ("", ""), strict=True))
    files = dict(zip(("chosen", "rejected"), pair.files, strict=True))
    pictures = tuple(
        Picture(label, data_uri(clip), captions[label] or files[label], "", best=False) for label, clip in sides
    )
    segments = tuple(pair.segments)
    return Example(pair.prompt, None, category="", overall=True, pictures=pictures, segments=segments, note=pair.note)
