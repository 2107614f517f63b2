"""Methods that judge both sides of a pair, in two depths of agreement beyond `core.method.Method`.

TwoSidedMethod    judges both sides: random noise or inversion, soft labels, `dense`, `sft_weight`, `guard`
PairwiseMethod    and does so by the margin against a reference: only `objective` is left to say
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from diffpo.core import objectives
from diffpo.core.block import Fraction, NotNegative, Positive
from diffpo.core.inversion import Inversion, follow, invert, recovered
from diffpo.core.method import Method
from diffpo.core.noising import NoiseSharing, Predictor, random_noise
from diffpo.core.process import NoiseProcess
from diffpo.core.terms import Dense, Terms, better_first, labelled_frames, whole_rows
from diffpo.core.types import Denoised, Judged, Noised, Pair, PairBatch, Rng, StepOutput, moved, moved_to
from diffpo.errors import ConfigError

NO_REFERENCE = "the loop builds a reference for every method that needs one"


@dataclass(frozen=True)
class Answers:
    """What both networks made of the pairs, term by term. The side called chosen is the one to be preferred."""

    policy: Pair[Denoised]
    """Answers to the `b` rows; `terms.row` says which row a term belongs to."""
    reference: Pair[Denoised] | Pair[Judged] | None
    terms: Terms
    error: Pair[Tensor]
    """`[k]` the policy's mean squared errors over the frames of each term."""
    reference_error: Pair[Tensor] | None
    """`[k]` the reference's."""

    @property
    def margin(self) -> Tensor:
        """`[k]` how much more the policy has improved on the chosen side; see `objectives.margin`."""
        assert self.reference_error is not None, NO_REFERENCE
        return objectives.margin(self.error, self.reference_error)

    @property
    def reward(self) -> Pair[Tensor]:
        """`[k]` each side's implicit reward before beta; see `objectives.reward`."""
        assert self.reference_error is not None, NO_REFERENCE
        return Pair(*map(objectives.reward, self.error, self.reference_error))

    def swapped(self) -> Answers:
        """The same with the sides exchanged, and the labels turned round."""
        return Answers(
            self.policy.swapped(),
            self.reference and self.reference.swapped(),
            replace(self.terms, preference=1 - self.terms.preference),
            self.error.swapped(),
            self.reference_error and self.reference_error.swapped(),
        )

    def take(self, which: Tensor) -> Answers:
        """The terms at the positions `which`, `[n]`, on the CPU."""
        if len(which) == len(self.terms.row):
            return self
        there = moved(which, self.error.chosen.device)
        return replace(
            self,
            terms=self.terms.take(which),
            error=self.error.map(lambda x: x[there]),
            reference_error=self.reference_error and self.reference_error.map(lambda x: x[there]),
        )


@dataclass(frozen=True, kw_only=True)
class TwoSidedMethod(Method):
    """A method that judges the two sides of a pair.

    A label may be soft. With p = `batch.preference`, the loss is its expectation over which side is the better one:

        loss = p L(chosen, rejected) + (1 - p) L(rejected, chosen)

    so p = 1 is the published loss, and for DPO this is the cross entropy with label p. A direction that a label gives
    no weight is not computed. With `dense`, the labels of the frames stand in the place of p.
    """

    sft_weight: NotNegative = 0.0
    """Weight of the denoising error of the better image, added to the loss: an anchor against forgetting."""
    sft_side: Literal["better", "chosen"] = "better"
    """Whose error that is: of the `better` image as the label says, each with its share where the label is soft, or of
    the `chosen` one whatever the label says (RPO, whose chosen images are photographs of a subject)."""
    guard: Fraction | None = None
    """Diffusion-SDPO's safeguard (arXiv:2511.03317), its mu in [0, 1]: 0.9 for SD1.5, 0.6 for SDXL; null is off.
    The worse image's pull is damped, pair by pair, so that to first order it cannot raise the error of the better
    one. (The released code has one factor per micro-batch, which depends on what else is in it.)"""
    noise: NoiseSharing = "shared"
    """Whether the two sides get the same random noise (as in released code: less variance) or one each."""
    inversion: Inversion | None = None
    """Walk the images back to noise along the network, in the place of adding random noise; null is off."""
    dense: Dense | None = None
    """What the loss of a pair of clips is a sum of (DenseDPO, arXiv:2506.03517): a term for each latent `frame`, for
    each `segment` (a run of equal labels), or one for their label-weighted mean (`joint`, the paper's eq. 7). It needs
    the column `segments`, whose labels stand in the place of `preference`; ties are left out. null: one term, the pair
    as a whole."""

    uses_preference: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if self.inversion is not None and self.noise != "shared":
            raise ConfigError("noise=independent says how random noise is drawn, and inversion draws none: set one")

    @property
    def reads_segments(self) -> bool:
        return self.dense is not None

    @property
    def needs_reference(self) -> bool:
        return True

    @property
    def cached_inversion(self) -> Inversion | None:
        return self.inversion if self.inversion is not None and self.inversion.cache else None

    @property
    def live_inversion(self) -> Inversion | None:
        return self.inversion if self.inversion is not None and not self.inversion.cache else None

    @property
    def asks_reference_for(self) -> str | None:
        if self.live_inversion is not None:
            return (
                "its images are inverted while it trains: set inversion=null, or keep the inversions, too, with "
                "inversion.cache=true and inversion.invert_with=reference"
            )
        return super().asks_reference_for

    @property
    def noising(self) -> tuple[Any, ...]:
        return self.noise, self.inversion and asdict(replace(self.inversion, at_once=None))

    def terms(self, batch: PairBatch) -> Terms:
        """List what the loss of each row is a sum of."""
        return whole_rows(batch) if self.dense is None else labelled_frames(batch, self.dense)

    @final
    def count(self, batch: PairBatch) -> Tensor:
        return super().count(batch) if self.dense is None else self.terms(batch).count(batch.size)

    @abstractmethod
    def compare(self, answers: Answers) -> Tensor:
        """Loss per term `[k]` if the side called chosen is the better one."""

    @abstractmethod
    def rewards(self, answers: Answers) -> Pair[Tensor]:
        """How well the policy does on each side of each term, `[k]`: its implicit rewards, for the log."""

    def logit(self, answers: Answers) -> Tensor:
        """How clearly the policy prefers the chosen side, `[k]`, for the log: the difference of the two rewards."""
        chosen, rejected = self.rewards(answers)
        return chosen - rejected

    @final
    def add_noise(
        self, policy: Predictor, reference: Predictor | None, batch: PairBatch, t: Tensor, rng: Rng
    ) -> Pair[Noised]:
        """Random noise, or an inversion of each image."""
        if self.inversion is None:
            return random_noise(policy.process, batch.latent, t, rng, self.noise)
        if batch.trajectory is not None:
            return follow(policy.process, batch.trajectory, t, self.inversion)
        if batch.inverted is not None:
            found = zip(batch.latent, batch.inverted, strict=True)
            return Pair(*(recovered(policy.process, x0, z, t) for x0, z in found))
        walker = self.inversion.choose(policy, reference)
        return invert(walker, batch.latent, batch.cond, t, rng, self.inversion)

    @final
    def loss(
        self, policy: Pair[Denoised], reference: Pair[Denoised] | Pair[Judged] | None, batch: PairBatch
    ) -> StepOutput:
        """Reduce errors to terms, take the expected loss over each term's label, and sum over the terms of a row."""
        terms = self.terms(batch)
        chosen = policy.chosen
        if self.reads_segments:
            assert batch.segments is not None, "the columns that a method needs were checked before"
            policy = better_first(policy, batch.segments)
            reference = reference and better_first(reference, batch.segments)  # pyright: ignore[reportArgumentType]
        error = policy.map(lambda x: terms.mean(x.error))
        reference_error = reference and reference.map(lambda x: terms.mean(x.error))
        answers = Answers(policy, reference, terms, error, reference_error)
        metrics = self._metrics(answers)
        sums = terms.sum(torch.stack([value.detach() for value in metrics.values()], dim=1), batch.size)
        loss = self._weighted(answers) + self._weighted(answers.swapped())
        if self.sft_weight and self.sft_side == "chosen":
            loss = loss + self.sft_weight * terms.mean(chosen.error)
        return StepOutput(terms.sum(loss, batch.size), dict(zip(metrics, sums.unbind(1), strict=True)))

    def _weighted(self, answers: Answers) -> Tensor:
        """P(chosen > rejected) times the loss in that direction, `[k]`.

        Terms that give the direction no weight are left out: zero times their loss would cost a computation, and would
        be no number where that loss is infinite.
        """
        p = answers.terms.preference
        which = p.nonzero().flatten()
        taken = answers.take(which)
        loss = self.compare(taken if self.guard is None else safeguard(taken, self.guard))
        if self.sft_weight and self.sft_side == "better":
            loss = loss + self.sft_weight * taken.error.chosen
        return loss.new_zeros(len(p)).index_add(0, moved(which, loss.device), moved_to(p[which], loss) * loss)

    def _metrics(self, answers: Answers) -> dict[str, Tensor]:
        rewards, u = self.rewards(answers), self.logit(answers)
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

    with g = d error / d prediction = 2 w (prediction - target) / n, in closed form and for each term, where n is the
    number of elements of a frame and w the frame's share in the term.
    """
    chosen, rejected = (2 * x.difference.detach() / x.prediction[0, :, 0].numel() for x in answers.policy)
    squared = replace(answers.terms, weight=answers.terms.weight.square())
    dot, square = (squared.mean((chosen * other).sum((1, 3, 4))) for other in (rejected, chosen))
    factor = torch.where(dot > 0, ((1 - mu) * square / dot.clamp_min(torch.finfo(dot.dtype).tiny)).clamp(max=1), 1.0)
    error = answers.error.rejected
    damped = error.detach() + factor * (error - error.detach())
    return replace(answers, error=Pair(answers.error.chosen, damped))


@dataclass(frozen=True, kw_only=True)
class PairwiseMethod(TwoSidedMethod):
    """A method that looks at the margin alone: errors -> guard -> margin -> objective."""

    beta: Positive = 2000.0
    """Strength of the pull towards the reference, for the *mean* squared error and the factor 1/2 (docs/beta.md)."""
    flow_weight: Literal["constant", "squared"] = "constant"
    """How beta depends on the time t of a flow model (Flow-DPO, arXiv:2501.13918): `constant`, which its authors found
    better, or `squared`, beta (1 - t)^2, the exact transfer of Diffusion-DPO, whose errors are those of the noise."""

    @abstractmethod
    def objective(self, margin: Tensor, preference: Tensor) -> Tensor:
        """Loss of each term, elementwise.

        Args:
            margin: `[k]` how much more the policy has improved on the side called chosen.
            preference: `[k]` P(chosen > rejected), for a method whose loss depends on it in a way of its own.
        """

    def check_process(self, process: NoiseProcess) -> None:
        if self.flow_weight != "constant" and process.prediction != "flow":
            raise ConfigError(
                f"flow_weight={self.flow_weight} is for flow models; this one predicts {process.prediction}. Set "
                "flow_weight=constant, or leave it out"
            )

    @final
    def compare(self, answers: Answers) -> Tensor:
        return self.objective(self._at_time(answers.margin, answers), answers.terms.preference)

    @final
    def rewards(self, answers: Answers) -> Pair[Tensor]:
        return answers.reward.map(lambda reward: self.beta * self._at_time(reward, answers))

    @final
    def logit(self, answers: Answers) -> Tensor:
        return self.beta * self._at_time(answers.margin, answers)

    def _at_time(self, values: Tensor, answers: Answers) -> Tensor:
        """Weigh values of terms `[k]` as `flow_weight` says; alpha is 1 - t, the same on both sides."""
        if self.flow_weight == "constant":
            return values
        alpha = answers.policy.chosen.noised.alpha.cpu()[answers.terms.row]
        return moved_to(alpha.square(), values) * values
