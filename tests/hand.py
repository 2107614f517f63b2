"""Answers and pairs whose numbers can be worked by hand, in float64."""

from dataclasses import replace

import torch

from diffpo.core.types import Condition, Denoised, Noised, Pair, PairBatch, StepOutput
from diffpo.methods import Method

LATENT = (1, 4, 1, 2, 2)
"""16 elements."""


def answer(prediction: float, target: float = 0.0, shape=LATENT) -> Denoised:
    """A prediction that misses a constant target by a constant."""
    return given(torch.full(shape, prediction, dtype=torch.float64).requires_grad_(), target)


def given(prediction: torch.Tensor, target: float = 0.0) -> Denoised:
    """Any prediction, and a constant target."""
    level = torch.ones(len(prediction), dtype=torch.float64)
    wanted = torch.full_like(prediction, target, requires_grad=False)
    return Denoised(prediction, Noised(torch.zeros_like(wanted), level, level, level, wanted))


def answers(chosen: float, rejected: float) -> Pair[Denoised]:
    """Constant predictions of both sides; their errors are the squares."""
    return Pair(answer(chosen), answer(rejected))


def rows(*pairs: Pair[Denoised]) -> Pair[Denoised]:
    """Pairs of one row each as one batch, whose predictions are leaves."""
    sides = zip(*pairs, strict=True)
    return Pair(*(given(torch.cat([x.prediction.detach() for x in side]).requires_grad_()) for side in sides))


def batch(rows: int = 1, preference: float = 1.0) -> PairBatch:
    """What a loss reads of a batch: the preference, and a label for the only frame, which says "chosen"."""
    latent, text = torch.zeros(rows, *LATENT[1:], dtype=torch.float64), Condition(torch.zeros(rows, 1, 1))
    soft = torch.full((rows,), preference, dtype=torch.float64)
    ones = torch.ones(rows, 1, dtype=torch.long)
    return PairBatch(Pair(latent, latent), Pair(text, text), soft, torch.arange(rows), segments=ones)


def judge(
    method: Method, policy: Pair[Denoised], reference: Pair[Denoised] | None, preference: float = 1.0
) -> StepOutput:
    """A method's loss of given answers."""
    return method.loss(policy, reference, batch(len(policy.chosen.prediction), preference))


def gradients(method: Method, policy: Pair[Denoised], *more) -> Pair[torch.Tensor]:
    """Gradient of the summed loss by both sides' predictions."""
    loss = judge(method, policy, *more).loss.sum()
    return Pair(*torch.autograd.grad(loss, [side.prediction for side in policy]))


CLIP = (4, 3, 2, 2)
"""Three frames."""


def clips(seed: int, rows: int = 2, shape: tuple[int, ...] = CLIP) -> Pair[Denoised]:
    """Random predictions of pairs of clips, which are leaves."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(2, rows, *shape, generator=generator, dtype=torch.float64)
    return Pair(*(given(x.requires_grad_(), 0.2) for x in numbers))


def labelled(segments: torch.Tensor, preference: float = 1.0) -> PairBatch:
    """Pairs of clips with a label for each frame, `[b f]`."""
    pairs, (rows, frames) = batch(len(segments), preference), segments.shape
    latent = torch.zeros(rows, LATENT[1], frames, *LATENT[3:], dtype=torch.float64)
    return replace(pairs, latent=Pair(latent, latent), segments=segments)
