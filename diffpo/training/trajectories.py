"""The reference's inversions, kept on disk: made once per row, read in every epoch.

For each row and side there are two trajectories, with the caption and with the empty one, from the posterior's mode
to the end of the grid. A trajectory is a function of its row: four images through the network together, always the
same four. They lie in a store (`disk.rows`) whose name depends on the encodings, on the reference's weights, on the
inversion and on the precision; a row's key is the hash of its images' keys and of its captions.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from diffpo.config.run import Config
from diffpo.core.inversion import Inversion, trajectory
from diffpo.core.types import DTYPES, Pair
from diffpo.data.cache import CachedEncodings
from diffpo.data.encode import BOTH
from diffpo.data.loader import PairLoader
from diffpo.disk.rows import Row, RowStore, as_keys, cache_home, digest, key_at
from diffpo.training.learner import Learner, identify_model

FORMAT = 2
"""Raise it when the meaning of a row's content changes."""


def keep_trajectories(learner: Learner, loaders: Sequence[PairLoader]) -> None:
    """Let the loaders' batches carry kept inversions, if the method asks for that; missing ones are made first."""
    inversion = learner.config.method.cached_inversion
    if inversion is None:
        return
    for loader in loaders:
        kept = KeptTrajectories(learner.config, inversion, loader)
        kept.make(learner)
        learner.accelerator.wait_for_everyone()
        kept.store.refresh()
        loader.trajectories = kept.read


class KeptTrajectories:
    """Trajectories of one table, one reference and one inversion; making this computes none."""

    def __init__(self, config: Config, inversion: Inversion, loader: PairLoader):
        encodings = loader.encodings
        assert isinstance(encodings, CachedEncodings), "the config refuses inversion.cache without data.cache"
        self._inversion, self._loader = inversion, loader
        recipe = {
            "format": FORMAT,
            "encodings": [encodings.media.folder.name, encodings.texts.folder.name],
            "reference": identify_model(config),
            "inversion": [inversion.steps, inversion.renoise, inversion.landing],
            "shift": config.model.time.shift,
            "precision": [config.model.dtype, config.train.dtype, config.train.mixed_precision, config.model.attention],
        }
        self.store = RowStore("trajectories", recipe, cache_home(config.data.cache_dir))
        self._usable = np.sort(np.concatenate(loader.groups))
        table, keys = loader.table, encodings.keys
        captions = zip(*(chain.from_iterable(table.in_parts(table.captions, side)) for side in BOTH), strict=True)
        self._keys = as_keys(
            [digest(*(key_at(keys[side], i) for side in BOTH), *texts) for i, texts in enumerate(captions)]
        )

    def make(self, learner: Learner) -> None:
        """Compute this process's share of what is not there yet; every process must call this."""
        world, rank = learner.accelerator.num_processes, learner.accelerator.process_index
        assert learner.reference is not None, "inversion.cache comes with invert_with=reference"
        rows = sum(map(len, self.store.pending(self._keys[self._usable], rank=rank, world=world)))
        calls = learner.reference.lockstep(rows)
        compute = partial(self._compute, learner)
        self.store.fill(self._keys[self._usable], compute, "Inverting", rank=rank, world=world)
        for _ in range(calls - rows):  # a sharded reference must be called equally often by all processes
            list(self._compute(learner, [0]))

    def read(self, index: Sequence[int], dropped: Sequence[bool]) -> Pair[Tensor]:
        """Return `[b n c f h w]` of each side, for rows with their captions or, where dropped, without."""
        rows = [self.store[key_at(self._keys, row)].tensors for row in index]
        return Pair(
            *(torch.stack([row[side][int(drop)] for row, drop in zip(rows, dropped, strict=True)]) for side in BOTH)
        )

    def _compute(self, learner: Learner, places: Sequence[int]) -> Iterator[Row]:
        """Yield, for usable rows, each side's `[2 n c f h w]`: with the caption, and with the empty one."""
        reference, train = learner.reference, learner.config.train
        assert reference is not None
        for row in self._usable[places].tolist():
            batch = self._loader.both_ways(row).to(learner.accelerator.device, DTYPES[train.dtype])
            with learner.accelerator.autocast():
                kept = trajectory(reference, batch.latent, batch.cond, self._inversion)
            yield Row(tensors={side: getattr(kept, side).cpu() for side in BOTH})
