"""What a method is: a frozen value of hyper-parameters with two hooks, `add_noise` and `loss`.

Everything else that tells the published methods apart is data (which captions, which labels) or denoiser (adapters,
user states).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, final

import torch
from torch import Tensor

from diffpo import objectives
from diffpo.noising import random_noise
from diffpo.types import Block, Denoised, Noised, Pair, PairBatch, Rng, StepOutput

if TYPE_CHECKING:
    from diffpo.process import NoiseProcess
    from diffpo.types import Condition


class Predictor(Protocol):
    """What a method and the step may ask of a denoiser."""

    process: NoiseProcess

    def predict(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Answer `[b c f h w]` to z `[b c f h w]` at t `[b]`, in the process's own parametrisation."""
        ...


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
    @abstractmethod
    def needs_reference(self) -> bool:
        """Whether a frozen reference must exist; if not, none is built."""

    def add_noise(
        self, policy: Predictor, reference: Predictor | None, batch: PairBatch, t: Tensor, rng: Rng
    ) -> Pair[Noised]:
        """Make the noisy latents of both sides; by default with random noise that the pair shares.

        Args:
            policy: The network in training.
            reference: The frozen one, if the method needs it.
            batch: Clean latents and conditions.
            t: `[b]` one time per pair.
            rng: The draws of these rows.
        """
        return random_noise(policy.process, batch.latent, t, rng)

    @abstractmethod
    def loss(self, policy: Pair[Denoised], reference: Pair[Denoised] | None, batch: PairBatch) -> StepOutput:
        """Turn both networks' answers into one loss per row, and values to log."""

    def count(self, batch: PairBatch) -> Tensor:
        """Number of terms that each row adds to the loss, `[b]`; the loop divides by their sum over all rows."""
        return torch.ones(batch.size)


@dataclass(frozen=True, kw_only=True)
class PairwiseMethod(Method):
    """A method that compares the two sides against a reference: errors -> margin -> objective."""

    beta: float
    """Strength of the pull towards the reference, for the *mean* squared error and the factor 1/2 (see README)."""

    def __post_init__(self):
        """Refuse a beta that turns the preference around.

        Raises:
            ValueError: beta is not positive.
        """
        if not 0 < self.beta < float("inf"):
            raise ValueError(f"beta is {self.beta}; it must be positive and finite (papers use 500 to 5000)")

    @property
    def needs_reference(self) -> bool:
        """A margin is always taken against a reference."""
        return True

    @abstractmethod
    def objective(self, margin: Tensor, batch: PairBatch) -> Tensor:
        """Loss per row `[b]` of the margins `[b]`."""

    @final
    def loss(self, policy: Pair[Denoised], reference: Pair[Denoised] | None, batch: PairBatch) -> StepOutput:
        """Reduce over frames, take the margin, apply the objective."""
        assert reference is not None, "the loop builds a reference for every method that needs one"
        policy_error = policy.map(lambda x: x.error.mean(1))
        reference_error = reference.map(lambda x: x.error.mean(1))
        margin = objectives.margin(policy_error, reference_error)
        return StepOutput(
            self.objective(margin, batch), self._metrics(self.beta * margin, policy_error, reference_error)
        )

    def _metrics(self, u: Tensor, policy: Pair[Tensor], reference: Pair[Tensor]) -> dict[str, Tensor]:
        values: Mapping[str, Tensor] = {
            "rewards/chosen": self.beta * objectives.reward(policy.chosen, reference.chosen),
            "rewards/rejected": self.beta * objectives.reward(policy.rejected, reference.rejected),
            "rewards/margins": u,
            "rewards/accuracies": (u > 0) + 0.5 * (u == 0),  # a tie counts half: policy == reference gives 0.5
            "error/chosen": policy.chosen,
            "error/rejected": policy.rejected,
            "error/reference_chosen": reference.chosen,
            "error/reference_rejected": reference.rejected,
        }
        return {name: value.detach() for name, value in values.items()}
