"""Inversions of several micro-batches at once: the network is constant within an update, so full calls can be made.

An image that is far from its time needs many calls, one that is near it few. Micro-batch by micro-batch, the calls
would be as many as the longest way in each, most of them about some rows only. Together all but the last call are full.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from diffpo.core.step import invert_together
from diffpo.core.types import DTYPES, PairBatch

if TYPE_CHECKING:  # the benchmark uses this file on machines without pydantic
    from diffpo.config.run import Train
    from diffpo.training.learner import Learner

WINDOW = 8
"""Micro-batches that are inverted together, and wait on the device with their texts: few, since only the last call of
all is not full, one in about fifty. All processes must take equally many."""


def inverted(learner: Learner, batches: Iterable[PairBatch], epoch: int) -> Iterator[PairBatch]:
    """Yield micro-batches; where the method inverts while it trains, on the device and with their points found."""
    config, device, waiting = learner.config, learner.accelerator.device, iter(batches)
    if (inversion := config.method.live_inversion) is None:
        yield from waiting
        return
    most, least = images_per_call(config.train, inversion.at_once)
    networks, draws = (learner.policy, learner.reference), (config.train.seed, config.data.draw(epoch))
    while window := [batch.to(device, DTYPES[config.train.dtype]) for batch in islice(waiting, WINDOW)]:
        with learner.accelerator.autocast():
            found = invert_together(config.method, *networks, window, *draws, most=most, least=least)
        yield from found


def images_per_call(train: Train, at_once: int | None) -> tuple[int, int]:
    """How many images an inversion asks about at once, at most and at least.

    As told, else no more than a training forward holds. A compiled network sees one shape only. A single micro-batch
    then gets half as many: its images arrive one after the other, and of full calls half would be idle.
    """
    most = at_once or (train.batch if train.split_forward else 2 * train.batch)
    if train.compile is None:
        return most, 0
    if at_once is None and train.accumulate == 1 and train.batch > 1:
        most = train.batch
    return most, most
