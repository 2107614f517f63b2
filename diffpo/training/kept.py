"""What the frozen reference says of each pair, kept on disk: made once per row, read in every epoch and every run.

It lies in a store (`disk.rows`) whose name depends on all that decides it besides the row: the encodings, the
reference's weights, the arithmetic, and what a subclass adds. A row's key is the hash of its images' keys and of its
captions. All processes share the work; a kill costs the file that was being written, and the same call goes on.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, ClassVar

import numpy as np

from diffpo.config.run import Config
from diffpo.data.cache import CachedEncodings
from diffpo.data.encode import BOTH
from diffpo.data.loader import PairLoader
from diffpo.disk.progress import progress
from diffpo.disk.rows import Row, RowStore, as_keys, cache_home, digest, key_at
from diffpo.training.learner import Learner, identify_model


class Kept(ABC):
    """One kind of answers of one reference about one table; making this computes none."""

    kind: ClassVar[str]
    """Name of the stores' folder."""
    title: ClassVar[str]
    """What is done while they are computed."""

    def __init__(self, config: Config, loader: PairLoader, recipe: Mapping[str, Any], rows: np.ndarray):
        """Find what is there already.

        Args:
            config: The run's.
            loader: Makes the batches that the reference is asked about.
            recipe: What decides an answer besides the encodings, the weights and the arithmetic.
            rows: `[n]` rows of the table that are asked for.
        """
        encodings = loader.encodings
        assert isinstance(encodings, CachedEncodings), "the config refuses this without data.cache"
        self._config, self._loader, self._rows = config, loader, rows
        model, train = config.model, config.train
        same = {
            "encodings": [encodings.media.folder.name, encodings.texts.folder.name],
            "reference": identify_model(config),
            "precision": [model.dtype, train.dtype, train.mixed_precision, train.tf32, model.attention],
        }
        self.store = RowStore(self.kind, same | recipe, cache_home(config.data.cache_dir))
        table, keys = loader.table, encodings.keys
        captions = zip(*(chain.from_iterable(table.in_parts(table.captions, side)) for side in BOTH), strict=True)
        images = (tuple(key_at(keys[side], row) for side in BOTH) for row in range(len(table)))
        described = enumerate(zip(images, captions, strict=True))
        self._keys = as_keys([digest(*pair, *texts, *self.more(row)) for row, (pair, texts) in described])

    def more(self, row: int) -> tuple[bytes, ...]:
        """What an answer about a row of the table depends on besides its images and captions."""
        return ()

    @property
    def complete(self) -> bool:
        """Whether every row that is asked for is there."""
        return not len(self.store.missing(self._keys[self._rows]))

    def make(self, learner: Learner) -> None:
        """Compute what is not there yet, together with the other processes, and let the loader read it."""
        accelerator, reference, keys = learner.accelerator, learner.reference, self._keys[self._rows]
        share = {"rank": accelerator.process_index, "world": accelerator.num_processes}
        if reference is not None:
            calls = sum(map(self.calls, self.store.pending(keys, **share)))
            alike = reference.lockstep(calls)
            with progress(self.title, calls, shown=accelerator.is_main_process) as advance:
                self.store.fill(keys, partial(self.compute, learner, advance), None, **share)
            for _ in range(alike - calls):  # a sharded reference must be called equally often by all processes
                self.call(learner)
        accelerator.wait_for_everyone()
        self.store.refresh()
        assert self.complete, "a reference was there to ask, or nothing was missing"
        self.attach()

    @abstractmethod
    def attach(self) -> None:
        """Let the loader's batches carry what is kept."""

    @abstractmethod
    def calls(self, places: Sequence[int]) -> int:
        """Number of times that `compute` asks the reference about the rows at some places of those asked for."""

    @abstractmethod
    def call(self, learner: Learner) -> None:
        """Ask once about anything, to keep other processes company."""

    @abstractmethod
    def compute(self, learner: Learner, advance: Callable[[int], None], places: Sequence[int]) -> Iterator[Row]:
        """Ask the reference about the rows at some places of those asked for, in this order.

        `advance` is told of every call: a file's rows may need many of them.
        """


def all_rows(loader: PairLoader) -> np.ndarray:
    """`[n]` all usable rows of a table."""
    return np.sort(np.concatenate(loader.groups))
