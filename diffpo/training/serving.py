"""Inversions of several micro-batches at once: the network is constant within an update, so full calls can be made.

An image that is far from its time needs many calls, one that is near it few. Micro-batch by micro-batch, the calls
would be as many as the longest way in each, most of them about some rows only. Together all but the last call are full.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch

from diffpo.core.inversion import Inversion
from diffpo.core.step import invert_together
from diffpo.core.types import DTYPES, PairBatch

if TYPE_CHECKING:  # the benchmark uses this file on machines without pydantic
    from diffpo.config.run import Train
    from diffpo.models.tuning import Tuning
    from diffpo.training.learner import Learner

WINDOW = 8
"""Micro-batches that are inverted together at most, and wait on the device with their texts: few, since only the last
call of all is not full, one in about fifty. All processes must take equally many."""
ROOM = 4
"""Images of a forward without gradients on a GPU for each one of a training forward, which keeps its activations: nine
of Stable Diffusion 1.5 take as much memory as one that learns, and more than twenty of SDXL."""


@dataclass(frozen=True)
class Calls:
    """How inversions are cut into calls of the network."""

    window: int
    """Micro-batches that are inverted together."""
    most: int
    """Images in a call at most."""
    least: int
    """Images in a call at least: idle ones fill it up."""


def inverted(learner: Learner, batches: Iterable[PairBatch], epoch: int) -> Iterator[PairBatch]:
    """Yield micro-batches; where the method inverts while it trains, on the device and with their points found."""
    config, device, waiting = learner.config, learner.accelerator.device, iter(batches)
    if (inversion := config.method.live_inversion) is None:
        yield from waiting
        return
    calls = choose_calls(config.train, config.model, inversion, device)
    networks, draws = (learner.policy, learner.reference), (config.train.seed, config.data.draw(epoch))
    while window := [batch.to(device, DTYPES[config.train.dtype]) for batch in islice(waiting, calls.window)]:
        with learner.accelerator.autocast():
            found = invert_together(config.method, *networks, window, *draws, most=calls.most, least=calls.least)
        yield from found


def choose_calls(train: Train, model: Tuning, inversion: Inversion, device: torch.device) -> Calls:
    """Say how the inversions of an update are cut into calls.

    A processor takes as many images as a training forward holds, and fewer where fewer have not arrived.

    On a GPU every call holds equally many. It prepares convolutions and attention anew for each number of images that
    it has not seen: in the one run on a card that changed the number, this seems to have cost as much as five calls
    each time. So many are in a call that the calls are about as many as the longest way has, or as fit into memory.
    Then few are idle. What is compiled for a processor also sees one number: half of a training forward's where one
    micro-batch is alone.
    """
    forward = train.batch if train.split_forward else 2 * train.batch
    if device.type == "cpu":
        most = inversion.at_once or forward
        if train.compile is None:
            return Calls(WINDOW, most, 0)
        if inversion.at_once is None and train.accumulate == 1 and train.batch > 1:
            most = train.batch
        return Calls(WINDOW, most, most)
    window = math.ceil(train.accumulate / math.ceil(train.accumulate / WINDOW))  # an update's windows are alike
    room = forward if model.gradient_checkpointing else ROOM * forward
    longest = inversion.steps * (1 + inversion.renoise)
    filling = math.ceil(window * train.batch * inversion.rows / longest)
    most = inversion.at_once or min(room, filling)
    return Calls(window, most, most)
