"""Supervised fine-tuning on the chosen images: the baseline that every preference paper compares with.

    loss = || prediction - target ||^2 / n    on the chosen image alone

The rejected image is neither loaded, noised nor forwarded, and there is no reference.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from diffpo.core.types import Denoised, Judged, Pair, PairBatch, StepOutput
from diffpo.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class SFT(Method):
    """Denoising loss on the chosen images."""

    sides: ClassVar[tuple[str, ...]] = ("chosen",)

    sft_side: Literal["better", "chosen"] = "better"
    """`better`: a table that says of some rows that the chosen image is the worse one is refused. `chosen`: chosen
    images are learned whatever labels say, such as photographs of a subject (DreamBooth, without its prior images)."""

    @property
    def needs_order(self) -> bool:
        return self.sft_side == "better"

    @property
    def needs_reference(self) -> bool:
        return False

    def loss(
        self, policy: Pair[Denoised], reference: Pair[Denoised] | Pair[Judged] | None, batch: PairBatch
    ) -> StepOutput:
        error = policy.chosen.error.mean(1)
        return StepOutput(error, {"error/chosen": error.detach()})
