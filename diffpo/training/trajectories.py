"""The reference's inversions, kept on disk (`Kept`).

For each row and side there are two trajectories, with the caption and with the empty one, from the posterior's mode
to the end of the grid. A trajectory is a function of its row: four images through the network together, always the
same four.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from diffpo.config.run import Config
from diffpo.core.inversion import Inversion, trajectory
from diffpo.core.types import DTYPES, Pair
from diffpo.data.encode import BOTH
from diffpo.data.loader import PairLoader
from diffpo.disk.rows import Row, key_at
from diffpo.training.kept import Kept, all_rows
from diffpo.training.learner import Learner

FORMAT = 2
"""Raise it when the meaning of a row's content changes."""


class KeptTrajectories(Kept):
    """Trajectories of one table, one reference and one inversion."""

    kind: ClassVar[str] = "trajectories"
    title: ClassVar[str] = "Inverting"

    def __init__(self, config: Config, inversion: Inversion, loader: PairLoader):
        self._inversion = inversion
        recipe = {
            "format": FORMAT,
            "inversion": [inversion.steps, inversion.renoise, inversion.landing],
            "shift": config.model.time.shift,
        }
        super().__init__(config, loader, recipe, all_rows(loader))

    def attach(self) -> None:
        self._loader.trajectories = self.read

    def read(self, index: Sequence[int], dropped: Sequence[bool]) -> Pair[Tensor]:
        """Return `[b n c f h w]` of each side, for rows with their captions or, where dropped, without."""
        rows = [self.store[key_at(self._keys, row)].tensors for row in index]
        return Pair(
            *(torch.stack([row[side][int(drop)] for row, drop in zip(rows, dropped, strict=True)]) for side in BOTH)
        )

    def calls(self, places: Sequence[int]) -> int:
        return len(places)

    def call(self, learner: Learner) -> None:
        next(self.compute(learner, lambda calls: None, [0]))

    def compute(self, learner: Learner, advance: Callable[[int], None], places: Sequence[int]) -> Iterator[Row]:
        """Yield each side's `[2 n c f h w]`: with the caption, and with the empty one."""
        reference, train = learner.reference, learner.config.train
        assert reference is not None
        for row in self._rows[places].tolist():
            batch = self._loader.both_ways(row).to(learner.accelerator.device, DTYPES[train.dtype])
            with learner.accelerator.autocast():
                kept = trajectory(reference, batch.latent, batch.cond, self._inversion)
            advance(1)
            yield Row(tensors={side: getattr(kept, side).cpu() for side in BOTH})
