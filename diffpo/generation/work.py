"""The one way in which a media folder is filled: what is missing is made, by any number of processes.

The manifest and the settings are written first: they list all that will be there. Images are made in batches, and those
of a batch get their names together. After a kill the rest is cut into the batches that it would have been cut into, so
the images are the same, byte for byte. Processes share the batches; a batch does not depend on their number.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object

from diffpo.disk.ahead import WORKERS, ahead, groups
from diffpo.disk.files import sweep, whole_folder, write_file
from diffpo.disk.progress import progress
from diffpo.media.folder import Media, read_settings, write_manifest, write_settings
from diffpo.media.frames import Clip, encode
from diffpo.media.prompts import PromptSet, write_prompts
from diffpo.models.fitting import Fitting

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState
    from rich.console import Console

Draw = Callable[[Sequence[Media]], Sequence[Clip]]
"""What is asked for -> the images."""
_BATCH = ".batch-"
FITTED = "batch that fitted"
"""The setting that says how many images were made at a time, where memory did not hold those that were asked for."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a media folder is to hold, and what of it is missing.

    Several processes may look at once what is missing, before any of them begins.
    """

    folder: Path
    """It need not exist yet."""
    media: list[Media]
    """All that it is to hold."""
    batch: int
    """Images at a time."""
    sample: Callable[[], Draw]
    """Opens what samples; called only where something is missing."""
    prompts: PromptSet
    """Those of the images, with what their set says of them."""
    settings: dict[str, Any]
    """How the images are made."""
    fitting: Fitting | None = None
    """How many of a batch are made together, once that is found out; None: nobody asks."""
    missing: list[list[Media]] = field(init=False)
    """By batch."""

    def __post_init__(self):
        """Finish what a kill left half done, and see what is missing."""
        for path in self.folder.glob(f"{_BATCH}*"):
            _give_names(path)
        missing = [item for item in self.media if not (self.folder / item.file).is_file()]
        object.__setattr__(self, "missing", list(groups(missing, self.batch)))

    @property
    def reused(self) -> int:
        """How many of the images were there already."""
        return len(self.media) - sum(map(len, self.missing))


def fill(
    works: Collection[Work], state: PartialState | Accelerator, console: Console, *, sharded: bool = False
) -> None:
    """Make what is missing of media folders. Each batch is on the disk whole, or not at all.

    Args:
        works: What is asked for; every process has looked at what is missing of it.
        state: Which process this is. They share the batches.
        console: Where to show progress.
        sharded: Whether networks lie on all processes: then each one samples every batch, and the first one writes.

    Raises:
        UserError: If what samples cannot be opened, or an image cannot be made.
    """
    state.wait_for_everyone()  # nobody writes while another one looks
    for work in works if state.is_main_process else ():
        work.folder.mkdir(parents=True, exist_ok=True)
        sweep(work.folder)
        write_settings(work.folder, _stated(work))
        write_prompts(work.folder, work.prompts)
        write_manifest(work.folder, work.media)
    state.wait_for_everyone()
    for work in works:
        batches = work.missing if sharded else work.missing[state.process_index :: state.num_processes]
        if batches:
            _make(work, work.sample(), batches, console, writes=state.is_main_process or not sharded)
            gc.collect()  # pipelines hold themselves
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    for work in works:
        fitted = min(gather_object([work.batch if work.fitting is None else work.fitting.most]))
        if state.is_main_process and fitted < work.batch:
            write_settings(work.folder, _stated(work, fitted))
    state.wait_for_everyone()


def _stated(work: Work, fitted: int | None = None) -> dict[str, Any]:
    """The settings, and beside them how many images fitted into memory at a time, where those were fewer than asked."""
    fitted = fitted or read_settings(work.folder).get(FITTED)
    return work.settings | ({} if fitted is None else {FITTED: fitted})


def _make(work: Work, sample: Draw, batches: list[list[Media]], console: Console, *, writes: bool) -> None:
    """Make batches; while one is encoded and written by threads, the next one is sampled."""
    total = sum(map(len, batches))

    def sampled() -> Iterator[tuple[list[Media], Sequence[Clip]]]:
        for batch in batches:
            yield batch, sample(batch)

    def save(made: tuple[list[Media], Sequence[Clip]]) -> int:
        batch, clips = made
        if writes:
            whole = work.folder / f"{_BATCH}{batch[0].file}"
            suffixes = [Path(item.file).suffix for item in batch]
            with whole_folder(whole) as unfinished:
                for item, content in zip(batch, encoders.map(encode, clips, suffixes), strict=True):
                    write_file(unfinished / item.file, content)
            _give_names(whole)
        return len(batch)

    title = f"Generating {work.media[0].model}"
    with progress(title, total, console=console) as advance, ThreadPoolExecutor(WORKERS) as encoders:
        for count in ahead(save, sampled(), depth=1):
            advance(count)


def _give_names(whole: Path) -> None:
    """Move the images of a whole batch to where they belong; several processes may do it at once."""
    for file in list(whole.iterdir()):
        with contextlib.suppress(FileNotFoundError):
            file.replace(whole.parent / file.name)
    with contextlib.suppress(OSError):
        whole.rmdir()
