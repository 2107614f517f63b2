"""What a run will take, and how its update is best cut: told from a configuration, before anything is launched.

    memory   weights, reference, optimizer, and the most that activations and gradients take together (`forecast`)
    pace     the operations of an update over what cards were seen to reach, and the gaps between launches
    disk     the encodings of the table

Cuts are compared that leave an update what it is: pairs per forward x forwards stays.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from diffpo.config.run import Config
from diffpo.core.types import DTYPES, HALF
from diffpo.data.records import Table
from diffpo.data.splits import load_splits
from diffpo.disk.weights import EMBEDDED
from diffpo.errors import UserError
from diffpo.media.users import Users
from diffpo.models.base import Denoiser
from diffpo.models.outline import Outline, outline
from diffpo.training.cards import GIB, Card
from diffpo.training.forecast import Traced, Weights, forecast, inverted

SHARE = {"plain": 0.41, "fused": 0.60, "regional": 0.60, "whole": 0.60}
"""Share of a large matrix product's pace that more pairs were seen to reach, by who computes: torch's kernels one by
one, `train.fused`, or what `train.compile` makes (docs/speed.md)."""
GAP = 25e-6
"""Seconds that an operation was seen to cost beside its arithmetic."""
FEWER = {"plain": 1.0, "fused": 1.0, "regional": 1 / 3, "whole": 1 / 3}
"""Operations that a GPU is given, as a share of those of the step."""
USABLE = 0.94
"""Share of a card's memory that one may count on: its driver and fragments take the rest."""
WORTH_COMPILING = 600.0
"""Seconds that a run must last for the minutes of compiling to come back."""
MOST = 64
"""Pairs per forward that are tried."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One way to do the update."""

    batch: int
    accumulate: int
    checkpointing: bool
    kernels: str
    """A key of `SHARE`."""
    bytes: float
    """At the peak."""
    pace: float
    """Pairs per second, about."""
    fits: bool

    @property
    def compile(self) -> Literal["regional", "whole"] | None:
        """What `train.compile` has to be."""
        return {"regional": "regional", "whole": "whole"}.get(self.kernels)  # pyright: ignore[reportReturnType]

    @property
    def overrides(self) -> dict[str, Any]:
        """The settings that choose it, by dotted key."""
        return {
            "train.batch": self.batch,
            "train.accumulate": self.accumulate,
            "train.compile": self.compile,
            "model.gradient_checkpointing": self.checkpointing,
        }


@dataclass(frozen=True)
class Plan:
    """What is told of a run."""

    config: Config
    drawn: Outline
    card: Card
    weights: Weights
    traced: dict[bool, tuple[Traced, Traced]]
    """With and without checkpointing: a step of few pairs, and one of more."""
    pairs: int | None
    """In the table; None: it is not on this disk."""
    captions: int | None

    @property
    def own(self) -> Cut:
        """The update as the configuration has it."""
        train, model = self.config.train, self.config.model
        return self.cut(train.batch, train.accumulate, model.gradient_checkpointing, train.compile or self.usual)

    @property
    def usual(self) -> str:
        """Which kernels compute where nothing is compiled: ours for a UNet on a GPU in half precision, or torch's."""
        train, family = self.config.train, self.drawn.family
        ours = family.convolutional and family.fuse is not Denoiser.fuse and train.mixed_precision in HALF
        return "fused" if ours and not self.card.is_cpu and train.fused is not False else "plain"

    @property
    def flops(self) -> float:
        """Operations per pair without what checkpointing computes again; an inversion's mean is in it."""
        plain = self.traced[False][0]
        forward = plain.reference_flops / plain.pairs / len(self.config.method.sides) if plain.reference_flops else 0.0
        if not forward:
            forward = plain.flops / plain.pairs / 3 / len(self.config.method.sides)
        return plain.flops / plain.pairs + inverted(getattr(self.config.method, "inversion", None)) * forward

    @property
    def copied(self) -> int:
        """Bytes of a checkpoint's copy in host memory: trained weights, perhaps their average, and optimizer."""
        trained = self.weights.gradients  # as large as what they are of
        return trained * (2 if self.config.train.ema else 1) + self.weights.optimizer

    @property
    def effective(self) -> int:
        """Pairs per update of one process."""
        return self.config.train.batch * self.config.train.accumulate

    def activations(self, batch: int, checkpointing: bool, compiled: bool) -> tuple[float, float]:
        """Bytes of activations after the forward, and of the peak beside resting weights; a line through two traces."""
        few, more = self.traced[checkpointing]
        along = (batch - few.pairs) / (more.pairs - few.pairs)

        def at(a: float, b: float) -> float:
            return a + along * (b - a)

        kept = at(few.kept_compiled, more.kept_compiled) if compiled else at(few.kept, more.kept)
        return kept, at(few.peak_if(compiled), more.peak_if(compiled))

    def cut(self, batch: int, accumulate: int, checkpointing: bool, kernels: str) -> Cut:
        """Say what one way to do the update takes."""
        _, peak = self.activations(batch, checkpointing, kernels != "plain")
        needed = self.weights.resting + peak
        again = self.traced[True][0] if checkpointing else self.traced[False][0]
        plain = self.traced[False][0]
        flops = self.flops + (again.flops / again.pairs - plain.flops / plain.pairs)
        rate = self.card.single if self.config.train.mixed_precision not in HALF else self.card.half
        seconds = batch * flops / (rate * 1e12 * SHARE[kernels])
        if not self.card.is_cpu:
            seconds += GAP * FEWER[kernels] * again.launches
        fits = needed <= USABLE * self.card.gib * GIB
        return Cut(
            batch=batch,
            accumulate=accumulate,
            checkpointing=checkpointing,
            kernels=kernels,
            bytes=needed,
            pace=batch / seconds,
            fits=fits,
        )

    def cuts(self) -> list[Cut]:
        """The ways that leave the pairs per update as they are, the fastest that fits first."""
        sizes = [size for size in range(1, min(self.effective, MOST) + 1) if self.effective % size == 0]
        worth = not self.card.is_cpu and self.seconds(self.own) > WORTH_COMPILING
        kinds = [self.usual, "regional"] if worth and self.usual == "plain" else [self.usual]
        ways = itertools.product(sizes, (False, True), kinds)
        made = [self.cut(size, self.effective // size, again, kind) for size, again, kind in ways]
        return sorted(made, key=lambda cut: (not cut.fits, -cut.pace, cut.bytes))

    def seconds(self, cut: Cut) -> float:
        """How long the run takes, without encoding, samples and checkpoints."""
        return self.config.train.steps * self.effective / cut.pace

    @property
    def cache_bytes(self) -> tuple[int, int]:
        """Bytes of encodings: of the images of one pair, and of one caption."""
        wide = {"float32": 4, "float16": 2}[self.config.data.cache_dtype]
        moments = 2 if self.drawn.latent[1] == 1 else 1
        cells = 1
        for side in self.drawn.latent:
            cells *= side
        states = [self.drawn.cond.text, self.drawn.cond.pooled, *self.drawn.cond.extra.values()]
        text = sum(x.numel() * wide for x in states if x is not None and x.is_floating_point())
        return len(self.config.method.sides) * moments * cells * wide, text


def plan(config: Config, card: Card) -> Plan:
    """Trace a run's update and count its table.

    Raises:
        UserError: The model's sizes cannot be told, or settings do not fit it.
    """
    source, train = config.data, config.train
    frames = source.frames or 1
    drawn = outline(config.model, (source.resolution, source.resolution), frames)
    if source.users is not None:
        users = Users.open(source.users)
        drawn = drawn.telling(users.embedding, users.count)
    most = max(2, train.batch)
    traced, weights = {}, None
    for checkpointing in (False, True):
        tuning = replace(config.model, gradient_checkpointing=checkpointing)
        settings: dict[str, Any] = {"dtype": DTYPES[train.dtype], "half": HALF.get(train.mixed_precision)}
        steps = []
        for pairs in (1, most):
            weights, step = forecast(drawn, tuning, config.method, pairs, optimizer=train.optimizer, **settings)
            steps.append(step)
        traced[checkpointing] = tuple(steps)
    assert weights is not None
    table = _table(config)
    captions = None if table is None else _captions(table, config.method.sides)
    return Plan(config, drawn, card, weights, traced, None if table is None else len(table), captions)


def _table(config: Config) -> Table | None:
    """The table to learn from, where it is on this disk."""
    path = config.data.path
    here = Path(path).expanduser().exists() or path.partition(":")[0] in {name.partition(":")[0] for name in EMBEDDED}
    return load_splits(config.data).train if here else None


def _captions(table: Table, sides: Iterable[str]) -> int:
    """Different captions of a table, and the empty one."""
    seen = {hash(text) for side in sides for part in table.in_parts(table.captions, side) for text in part}
    return len(seen) + 1


def check_card(config: Config, card: Card) -> None:
    """Refuse a precision that a processor cannot train in.

    Raises:
        UserError: It cannot.
    """
    if card.is_cpu and config.train.mixed_precision == "fp16":
        raise UserError("train.mixed_precision=fp16 needs a GPU: give --card h100, or train.mixed_precision=no")
