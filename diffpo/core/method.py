"""What a method is: a frozen value of hyper-parameters with two hooks, `add_noise` and `loss`.

Everything else that tells the published methods apart is data (which captions, which labels) or denoiser (adapters,
user states). The methods themselves are in `diffpo.methods`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffpo.core.block import Block
from diffpo.core.inversion import Inversion
from diffpo.core.noising import Predictor, random_noise
from diffpo.core.process import NoiseProcess
from diffpo.core.types import Denoised, Judged, Noised, Pair, PairBatch, Rng, StepOutput


@dataclass(frozen=True, kw_only=True)
class Method(Block, ABC):
    """A way to learn from preference pairs."""

    requires: ClassVar[frozenset[str]] = frozenset()
    """Columns of the pair table that the method needs beyond prompt, chosen and rejected."""
    sides: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    """Sides that are loaded, noised and forwarded."""
    uses_preference: ClassVar[bool] = False
    """Whether the method reads `batch.preference`; if not, every pair is learned as "chosen is better"."""

    @property
    def needs_order(self) -> bool:
        """Whether rows are refused whose label says that the rejected image is the better one."""
        return not self.uses_preference

    @property
    def reads_segments(self) -> bool:
        """Whether the method reads `batch.segments`."""
        return False

    @property
    def columns(self) -> frozenset[str]:
        """`requires`, and the columns that the settings of this very method need."""
        return self.requires | ({"segments"} if self.reads_segments else set())

    def check_process(self, process: NoiseProcess) -> None:
        """Check that the method, with its settings, suits a model's noise process.

        Raises:
            ConfigError: It does not.
        """

    @property
    @abstractmethod
    def needs_reference(self) -> bool:
        """Whether a frozen reference must exist; if not, none is built."""

    @property
    def asks_reference_for(self) -> str | None:
        """What makes the method ask its reference while it trains, where errors kept beforehand would not do, if any.

        It goes on the sentence "the reference's errors cannot be kept, because ...".
        """
        return None if self.needs_reference else "this method has no reference"

    @property
    def noising(self) -> tuple[Any, ...]:
        """All settings of the method that `add_noise` reads, as plain values."""
        return ()

    def add_noise(
        self, policy: Predictor, reference: Predictor | None, batch: PairBatch, t: Tensor, rng: Rng
    ) -> Pair[Noised]:
        """Make both sides' noisy latents at t `[b]`, one time per pair; by default with noise that the pair shares."""
        return random_noise(policy.process, batch.latent, t, rng)

    @property
    def cached_inversion(self) -> Inversion | None:
        """The inversion whose trajectories the loop should keep on disk and hand over in `batch.trajectory`, if any."""
        return None

    @property
    def live_inversion(self) -> Inversion | None:
        """The inversion that asks a network while training, if any.

        The loop may do it for several batches together, and hand the points over in `batch.inverted`.
        """
        return None

    @abstractmethod
    def loss(
        self, policy: Pair[Denoised], reference: Pair[Denoised] | Pair[Judged] | None, batch: PairBatch
    ) -> StepOutput:
        """Turn both networks' answers into one loss per row, and values to log.

        Of the reference there may be errors alone, where `asks_reference_for` says that they do.
        """

    def count(self, batch: PairBatch) -> Tensor:
        """Number of terms that each row adds to the loss, `[b]`; the loop divides by their sum over all rows.

        It looks at labels alone: `batch` may hold no images yet.
        """
        return torch.ones(batch.size)
