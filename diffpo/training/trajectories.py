"""The reference's inversions, kept on disk: made once per row, read in every epoch.

For each row and side there are two trajectories, with the caption and with the empty one, from the posterior's mode
to the end of the grid. A trajectory is a function of its row: four images through the network together, always the
same four. They lie beside the encodings, under a name that depends on those, on the reference's weights and on the
inversion.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffpo.core.inversion import Inversion, trajectory
from diffpo.core.types import DTYPES, Pair
from diffpo.data.cache import CachedEncodings
from diffpo.data.loader import PairLoader
from diffpo.disk.files import write_file
from diffpo.disk.progress import track
from diffpo.disk.shards import cut, entry_tensors, make_entry, read_shards, write_entries
from diffpo.models import pipelines
from diffpo.training.learner import Learner

if TYPE_CHECKING:
    from diffpo.config.run import Config

FORMAT = 1
"""Raise it when the meaning of a file's content changes."""


def keep_trajectories(learner: Learner, loaders: Sequence[PairLoader]) -> None:
    """Let the loaders' batches carry kept inversions, if the method asks for that; missing ones are made first."""
    inversion = learner.config.method.cached_inversion
    if inversion is None:
        return
    for loader in loaders:
        kept = KeptTrajectories(learner.config, inversion, loader)
        kept.make(learner)
        learner.accelerator.wait_for_everyone()
        kept.open()
        loader.trajectories = kept


class KeptTrajectories:
    """Trajectories of one table, one reference and one inversion."""

    def __init__(self, config: Config, inversion: Inversion, loader: PairLoader):
        """Find their place; nothing is computed, read or written."""
        assert isinstance(loader.encodings, CachedEncodings), "the config refuses inversion.cache without data.cache"
        self._inversion, self._loader = inversion, loader
        encodings = loader.encodings.folder
        self.key = {
            "format": FORMAT,
            "encodings": encodings.name,
            "pairs": loader.identity,
            "reference": identify_reference(config),
            "inversion": [inversion.steps, inversion.renoise, inversion.landing],
            "shift": config.model.time.shift,
            "precision": [config.model.dtype, config.train.dtype, config.train.mixed_precision, config.model.attention],
        }
        name = hashlib.blake2b(json.dumps(self.key, sort_keys=True).encode(), digest_size=16).hexdigest()
        self.folder = encodings.parent.parent / "trajectories" / name
        self.shards = cut(self.folder, "trajectories", len(loader.encodings.targets))

    def make(self, learner: Learner) -> None:
        """Compute this process's share of what is not there yet; every process must call this.

        Raises:
            UserError: The disk is full. What was finished stays.
        """
        world, rank = learner.accelerator.num_processes, learner.accelerator.process_index
        assert learner.reference is not None, "inversion.cache comes with invert_with=reference"
        mine = [shard for shard in self.shards[rank::world] if not shard.path.exists()]
        rows = [i for shard in mine for i in shard.entries]
        calls = learner.reference.lockstep(len(rows))
        self.folder.mkdir(parents=True, exist_ok=True)
        if mine:
            write_file(self.folder / "key.json", json.dumps(self.key, indent=2))
        with contextlib.closing(
            track(self._entries(learner, rows), "Inverting", len(rows), shown=rank == 0)
        ) as entries:
            for shard in mine:
                content = itertools.islice(entries, len(shard.entries))
                write_file(shard.path, lambda file, content=content: write_entries(file, content))
        for _ in range(calls - len(rows)):  # a sharded reference must be called equally often by all processes
            self._compute(learner, int(self._loader.groups[0][0]))

    def open(self) -> None:
        """Open what all processes have made."""
        self._kept = read_shards(self.shards)

    def read(self, index: Sequence[int], dropped: Sequence[bool]) -> Pair[Tensor]:
        """Return `[b n c f h w]` of each side, for rows with their captions or, where dropped, without."""
        rows = [entry_tensors(self._kept[i]) for i in index]
        return Pair(
            *(
                torch.stack([row[side][int(drop)] for row, drop in zip(rows, dropped, strict=True)])
                for side in ("chosen", "rejected")
            )
        )

    def _entries(self, learner: Learner, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
        broken = self._loader.encodings.broken
        for row in rows:
            made = self._compute(learner, int(self._loader.groups[0][0]) if row in broken else row)
            yield make_entry(broken.get(row), (0, 0), {} if row in broken else made)

    def _compute(self, learner: Learner, row: int) -> dict[str, Tensor]:
        """Return, for each side, `[2 n c f h w]`: with the caption, and with the empty one."""
        reference, train = learner.reference, learner.config.train
        assert reference is not None
        batch = self._loader.both_ways(row).to(learner.accelerator.device, DTYPES[train.dtype])
        with learner.accelerator.autocast():
            kept = trajectory(reference, batch.latent, batch.cond, self._inversion)
        return {"chosen": kept.chosen.cpu(), "rejected": kept.rejected.cpu()}


def identify_reference(config: Config) -> list[str]:
    """Name the content of the weights that the reference is made of."""
    model = config.model
    found = pipelines.find_model(model.path, lora=model.lora, denoiser=model.denoiser)
    return [part.identity for part in (found.base, found.lora, found.denoiser) if part is not None]
