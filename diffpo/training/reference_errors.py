"""The reference's errors, kept on disk (`Kept`): with them training holds no reference and asks none.

For each pair there are K draws of time, noise, latent's sample and dropped caption, those of the epochs 0 to K - 1, and
for each draw the error of each side's frames: some numbers in the place of a second network. The reference is asked
about `train.batch` pairs of one size at a time, as it is while training, so that its answers are the same ones.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from diffpo.config.run import Config
from diffpo.core.step import reference_errors
from diffpo.core.types import DTYPES, Pair, Rng
from diffpo.data.encode import BOTH
from diffpo.data.loader import PairLoader
from diffpo.disk.rows import Row, key_at
from diffpo.training.kept import Kept
from diffpo.training.learner import Learner

FORMAT = 1
"""Raise it when the meaning of a row's content changes."""


class KeptErrors(Kept):
    """Errors of one table, one reference and one way to add noise, on the first draws of each pair."""

    kind: ClassVar[str] = "reference-errors"
    title: ClassVar[str] = "Asking the reference"

    def __init__(self, config: Config, draws: int, loader: PairLoader, rows: np.ndarray):
        """Find what is there already.

        Args:
            config: The run's.
            draws: Epochs whose draws are wanted.
            loader: Makes the batches that the reference is asked about.
            rows: `[n]` rows of the table that are asked for.
        """
        self._draws = draws
        model, train = config.model, config.train
        recipe = {
            "format": FORMAT,
            "draws": [draws, train.seed, loader.caption_dropout],
            "time": asdict(model.time),
            "told": [model.prediction, model.guidance, model.expert],
            "noising": config.method.noising,
            "forward": [train.batch, train.split_forward, train.compile, train.channels_last, train.fused],
        }
        super().__init__(config, loader, recipe, rows)

    def more(self, row: int) -> tuple[bytes, ...]:
        """The row's number, from which its random numbers are drawn."""
        return (row.to_bytes(8, "little"),)

    def attach(self) -> None:
        self._loader.reference_errors = self.read

    def read(self, index: Sequence[int], draw: int) -> Pair[Tensor]:
        """Return `[b f]` of each side: the errors of rows in one of their draws."""
        rows = [self.store[key_at(self._keys, row)].tensors for row in index]
        return Pair(*(torch.stack([row[side][draw] for row in rows]) for side in BOTH))

    def calls(self, places: Sequence[int]) -> int:
        return self._draws * len(self._batches(places))

    def call(self, learner: Learner) -> None:
        self._ask(learner, self._full([0]), 0)

    def compute(self, learner: Learner, advance: Callable[[int], None], places: Sequence[int]) -> Iterator[Row]:
        """Yield each side's `[draws f]`."""
        found: dict[int, dict[str, Tensor]] = {}
        for together in self._batches(places):
            rows = self._full(together)
            asked = list[Pair[Tensor]]()
            for draw in range(self._draws):
                asked.append(self._ask(learner, rows, draw))
                advance(1)
            errors = {side: torch.stack([getattr(each, side) for each in asked], dim=1) for side in BOTH}
            found |= {place: {side: errors[side][i] for side in BOTH} for i, place in enumerate(together)}
        for place in places:
            yield Row(tensors=found[place])

    def _ask(self, learner: Learner, rows: np.ndarray, draw: int) -> Pair[Tensor]:
        """Ask the reference about one draw of some rows, as a step would: `[b f]` of each side, on the CPU."""
        train = self._config.train
        assert learner.reference is not None
        batch = self._loader.batch(rows, draw).to(learner.accelerator.device, DTYPES[train.dtype])
        rng, split = Rng(train.seed, draw, batch.index), train.split_forward
        with learner.accelerator.autocast():
            errors = reference_errors(self._config.method, learner.reference, batch, rng, split_forward=split)
        return errors.map(lambda x: x.cpu())

    def _full(self, places: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows at some places, filled up with the first ones to a whole batch: all batches have one size."""
        return self._rows[np.resize(places, self._config.train.batch)]

    def _batches(self, places: Sequence[int]) -> list[np.ndarray]:
        """Cut places into batches of pairs of one size."""
        sizes, batch = self._loader.encodings.targets[self._rows[places]], self._config.train.batch
        _, size_of = np.unique(sizes, axis=0, return_inverse=True)
        alike = (np.asarray(places)[size_of.ravel() == k] for k in range(size_of.max() + 1))
        return [group[i : i + batch] for group in alike for i in range(0, len(group), batch)]
