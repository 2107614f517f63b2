"""Times a few ways to cut an update on the card that is here: the real loop, on random weights and random pairs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from torch import Tensor

from diffpo.config.run import Config
from diffpo.core.types import DTYPES, HALF, PairBatch
from diffpo.disk.files import write_file
from diffpo.errors import UserError
from diffpo.models.outline import Outline, assemble
from diffpo.training.forecast import labelled
from diffpo.training.learner import Learner, wrap
from diffpo.training.planning import Cut, Plan
from diffpo.training.processes import make_accelerator
from diffpo.training.update import update

TRIED = 4
"""Ways that are timed."""
WARM, TIMED = 2, 3
"""Updates before the clock runs, and under it."""
FULL = ("out of memory", "can't allocate memory", "not enough memory")
"""What torch says where memory does not suffice."""


def measure_cuts(plan: Plan, out: Path, say: Callable[[str], object]) -> Cut:
    """Time the ways that the forecast finds best, and write the settings of the fastest one as YAML.

    Args:
        plan: The forecast.
        out: Where the settings go.
        say: Told of each way, with what it made.

    Raises:
        UserError: None of them fits.
    """
    accelerator = make_accelerator(plan.config)
    found: list[tuple[float, Cut]] = []
    for cut in [cut for cut in plan.cuts() if cut.fits][:TRIED]:
        try:
            pace = pace_of(with_cut(plan.config, cut), plan.drawn, accelerator)
        except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if isinstance(error, RuntimeError) and not any(text in str(error) for text in FULL):
                raise
            say(f"batch {cut.batch}: does not fit")
            continue
        finally:
            accelerator.free_memory()
        say(f"batch {cut.batch}, checkpointing {cut.checkpointing}, {cut.kernels}: {pace:.3g} pairs/s")
        found.append((pace, cut))
    if not found:
        raise UserError("no way to cut the update fits here: take model=lora, or a smaller data.resolution")
    _, best = max(found, key=lambda each: each[0])
    settings: dict[str, dict[str, Any]] = {}
    for key, value in best.overrides.items():
        block, _, name = key.partition(".")
        settings.setdefault(block, {})[name] = value
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    write_file(out, yaml.safe_dump(settings))
    return best


def with_cut(config: Config, cut: Cut) -> Config:
    """The configuration, cut in that way."""
    train = replace(config.train, batch=cut.batch, accumulate=cut.accumulate, compile=cut.compile)
    return replace(config, train=train, model=replace(config.model, gradient_checkpointing=cut.checkpointing))


def pace_of(config: Config, drawn: Outline, accelerator: Accelerator) -> float:
    """Pairs per second of whole updates.

    An update of one forward and one of two are timed: what the others take follows from these.
    """
    train = config.train
    half = HALF.get(train.mixed_precision)
    policy, reference = assemble(drawn, config.model, DTYPES[train.dtype], accelerator.device, half)
    learner = wrap(config, accelerator, policy, reference if config.method.needs_reference else None)
    batch = random_pairs(drawn, train.batch, config.method.sides)
    one = seconds_of(learner, [batch])
    more = seconds_of(learner, [batch, batch]) - one if train.accumulate > 1 else 0.0
    return train.batch * train.accumulate / (one + (train.accumulate - 1) * more)


def seconds_of(learner: Learner, batches: list[PairBatch]) -> float:
    """Seconds of one update, once the first ones are done. Each waits for the device, since it reads the losses."""
    for number in range(WARM):
        update(learner, batches, 0, number)
    began = time.perf_counter()
    for number in range(TIMED):
        update(learner, batches, 0, number)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / TIMED


def random_pairs(drawn: Outline, count: int, sides: tuple[str, ...]) -> PairBatch:
    """Pairs of noise on the CPU, as a loader gives them."""

    def numbers(x: Tensor) -> Tensor:
        shape = (count, *x.shape[1:])
        if x.is_floating_point():
            return torch.randn(shape)
        return torch.full(shape, 1 if x.dtype == torch.bool else 512, dtype=x.dtype)  # a mask, or sizes in pixels

    return labelled({side: torch.randn(count, *drawn.latent) for side in sides}, drawn.cond.map(numbers))
