"""Methods that judge both sides of a pair, in two depths of agreement beyond `core.method.Method`.

TwoSidedMethod    judges both sides: random noise or inversion, soft labels, `sft_weight`, `guard`
PairwiseMethod    and does so by the margin against a reference: only `objective` is left to say
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from diffpo.core import objectives
from diffpo.core.block import Fraction, NotNegative, Positive
from diffpo.core.inversion import Inversion, follow, invert
from diffpo.core.method import Method
from diffpo.core.noising import Predictor, random_noise
from diffpo.core.types import Denoised, Noised, Pair, PairBatch, Rng, StepOutput


@dataclass(frozen=True)
class Answers:
    """What both networks made of the pairs. The side called chosen is the one to be preferred."""

    policy: Pair[Denoised]
    reference: Pair[Denoised] | None
    error: Pair[Tensor]
    """`[b]` the policy's mean squared errors over all frames."""
    reference_error: Pair[Tensor] | None
    """`[b]` the reference's."""
    batch: PairBatch

    @property
    def margin(self) -> Tensor:
        """`[b]` how much more the policy has improved on the chosen side; see `objectives.margin`."""
        assert self.reference_error is not None, "the loop builds a reference for every method that needs one"
        return objectives.margin(self.error, self.reference_error)

    def swapped(self) -> Answers:
        """The same with the sides exchanged, and the labels turned round."""
        preference = 1 - self.batch.preference
        segments = None if self.batch.segments is None else -self.batch.segments
        batch = replace(
            self.batch,
            latent=self.batch.latent.swapped(),
            cond=self.batch.cond.swapped(),
            preference=preference,
            segments=segments,
        )
        return Answers(
            self.policy.swapped(),
            self.reference and self.reference.swapped(),
            self.error.swapped(),
            self.reference_error and self.reference_error.swapped(),
            batch,
        )


@dataclass(frozen=True, kw_only=True)
class TwoSidedMethod(Method):
    """A method that judges the two sides of a pair.

    A label may be soft. With p = `batch.preference`, the loss is its expectation over which side is the better one:

        loss = p L(chosen, rejected) + (1 - p) L(rejected, chosen)

    so p = 1 is the published loss, and for DPO this is the cross entropy with label p.
    """

    sft_weight: NotNegative = 0.0
    """Weight of the denoising error of the better image, added to the loss: an anchor against forgetting."""
    guard: Fraction | None = None
    """Diffusion-SDPO's safeguard (arXiv:2511.03317), its mu in [0, 1]: 0.9 for SD1.5, 0.6 for SDXL; null is off.
    The worse image's pull is damped, pair by pair, so that to first order it cannot raise the error of the better
    one. (The released
    code has one factor per micro-batch, which depends on who else is in it.)"""
    inversion: Inversion | None = None
    """Walk the images back to noise along the network, in the place of adding random noise; null is off."""

    uses_preference: ClassVar[bool] = True

    @property
    def needs_reference(self) -> bool:
        """Errors are compared with the reference's; a method that does without says so."""
        return True

    @property
    def cached_inversion(self) -> Inversion | None:
        """The method's own, if its config says so."""
        return self.inversion if self.inversion is not None and self.inversion.cache else None

    @abstractmethod
    def compare(self, answers: Answers) -> Tensor:
        """Loss per row `[b]` if the side called chosen is the better one."""

    @abstractmethod
    def score(self, error: Tensor, reference: Tensor | None) -> Tensor:
        """How well the policy does on an image, `[b]`: its implicit reward, for the log."""

    def logit(self, answers: Answers) -> Tensor:
        """How clearly the policy prefers the chosen side, `[b]`, for the log: the difference of the two rewards."""
        chosen, rejected = self._rewards(answers)
        return chosen - rejected

    @final
    def add_noise(
        self, policy: Predictor, reference: Predictor | None, batch: PairBatch, t: Tensor, rng: Rng
    ) -> Pair[Noised]:
        """Random noise that the pair shares, or an inversion of each image."""
        if self.inversion is None:
            return random_noise(policy.process, batch.latent, t, rng)
        if batch.trajectory is not None:
            return follow(policy.process, batch.trajectory, t, self.inversion)
        walker = policy if self.inversion.invert_with == "policy" else reference
        assert walker is not None, "needs_reference says that the reference inverts"
        return invert(walker, batch.latent, batch.cond, t, rng, self.inversion)

    @final
    def loss(self, policy: Pair[Denoised], reference: Pair[Denoised] | None, batch: PairBatch) -> StepOutput:
        """Reduce over frames, and take the expected loss over the label."""
        error = policy.map(lambda x: x.error.mean(1))
        reference_error = None if reference is None else reference.map(lambda x: x.error.mean(1))
        answers = Answers(policy, reference, error, reference_error, batch)
        p = batch.preference.to(error.chosen)
        loss = p * self._loss(answers) + (1 - p) * self._loss(answers.swapped())
        return StepOutput(loss, {name: value.detach() for name, value in self._metrics(answers).items()})

    def _loss(self, answers: Answers) -> Tensor:
        guarded = answers if self.guard is None else safeguard(answers, self.guard)
        loss = self.compare(guarded)
        return loss + self.sft_weight * answers.error.chosen if self.sft_weight else loss

    def _rewards(self, answers: Answers) -> Pair[Tensor]:
        return Pair(
            *(
                self.score(error, reference)
                for error, reference in zip(answers.error, answers.reference_error or (None, None), strict=True)
            )
        )

    def _metrics(self, answers: Answers) -> dict[str, Tensor]:
        rewards, u = self._rewards(answers), self.logit(answers)
        values = {
            "rewards/chosen": rewards.chosen,
            "rewards/rejected": rewards.rejected,
            "rewards/margins": u,
            "rewards/accuracies": (u > 0) + 0.5 * (u == 0),  # a tie counts half: policy == reference gives 0.5
            "error/chosen": answers.error.chosen,
            "error/rejected": answers.error.rejected,
        }
        if answers.reference_error is not None:
            values["error/reference_chosen"] = answers.reference_error.chosen
            values["error/reference_rejected"] = answers.reference_error.rejected
        return values


def safeguard(answers: Answers, mu: float) -> Answers:
    """Damp the gradient of the rejected error, not its value (Diffusion-SDPO, arXiv:2511.03317).

        lambda = min(1, (1 - mu) |g_c|^2 / <g_c, g_r>) where <g_c, g_r> > 0, else 1

    with g = d error / d prediction = 2 (prediction - target) / n, in closed form and for each pair.
    """
    chosen, rejected = (output_gradient(x) for x in answers.policy)
    dot, square = (chosen * rejected).sum(1), chosen.square().sum(1)
    factor = torch.where(dot > 0, ((1 - mu) * square / dot.clamp_min(torch.finfo(dot.dtype).tiny)).clamp(max=1), 1.0)
    error = answers.error.rejected
    damped = error.detach() + factor * (error - error.detach())
    return replace(answers, error=Pair(answers.error.chosen, damped))


def output_gradient(answer: Denoised) -> Tensor:
    """Gradient of an image's mean squared error by its prediction, `[b n]` flat, detached, in at least float32."""
    dtype = torch.promote_types(answer.prediction.dtype, torch.float32)
    difference = (answer.prediction.detach().to(dtype) - answer.noised.target.to(dtype)).flatten(1)
    return 2 * difference / difference.shape[1]


@dataclass(frozen=True, kw_only=True)
class PairwiseMethod(TwoSidedMethod):
    """A method that looks at the margin alone: errors -> guard -> margin -> objective."""

    beta: Positive
    """Strength of the pull towards the reference, for the *mean* squared error and the factor 1/2 (docs/beta.md)."""

    @abstractmethod
    def objective(self, margin: Tensor, batch: PairBatch) -> Tensor:
        """Loss per row `[b]` of the margins `[b]`."""

    @final
    def compare(self, answers: Answers) -> Tensor:
        """Take the margin, apply the objective."""
        return self.objective(answers.margin, answers.batch)

    @final
    def score(self, error: Tensor, reference: Tensor | None) -> Tensor:
        """beta/2 (R - M)."""
        assert reference is not None, "the loop builds a reference for every method that needs one"
        return self.beta * objectives.reward(error, reference)

    @final
    def logit(self, answers: Answers) -> Tensor:
        """U = beta margin."""
        return self.beta * answers.margin
