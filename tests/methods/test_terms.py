"""What a row's loss is a sum of, and which directions of a label are computed."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import hand
import pytest
import torch
from hand import answers, batch, given, rows

from diffpo.core.terms import Terms
from diffpo.core.types import Condition, Pair, PairBatch
from diffpo.methods import METHODS, TwoSidedMethod

TWO_SIDED = [name for name, cls in METHODS.items() if issubclass(cls, TwoSidedMethod)]
CLIP = (2, 4, 3, 2, 2)
"""Two rows of three frames."""


def make(cls: type[TwoSidedMethod], name: str, **more) -> TwoSidedMethod:
    return cls(**({"scale": 1.0} if name == "mapo" else {"beta": 0.1}), **more)


def frame_by_frame(self, pairs: PairBatch) -> Terms:
    """A term for each frame whose label is no tie; -1 says that the rejected side's frame is the better one."""
    row, frame = pairs.segments.nonzero(as_tuple=True)
    weight = torch.nn.functional.one_hot(frame, pairs.shape[1]).double()
    return Terms(row, weight, (1 + pairs.segments[row, frame].double()) / 2)


def clips(seed: int) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(2, *CLIP, generator=generator, dtype=torch.float64)
    return Pair(*(given(x.requires_grad_(), 0.2) for x in numbers))


def labelled(segments: torch.Tensor) -> PairBatch:
    latent, text = torch.zeros(CLIP, dtype=torch.float64), Condition(torch.zeros(len(segments), 1, 1))
    ones = torch.ones(len(segments), dtype=torch.float64)
    return PairBatch(Pair(latent, latent), Pair(text, text), ones, torch.arange(len(segments)), segments=segments)


@pytest.mark.parametrize("more", [{}, {"guard": 0.6, "sft_weight": 0.3}], ids=["plain", "guard and anchor"])
@pytest.mark.parametrize("name", TWO_SIDED)
def test_a_term_for_each_frame_is_a_row_for_each_frame(name, more):
    """Loss, metrics and gradients of clips are sums of those of their frames, each an image with its own label."""
    method = make(type("Dense", (METHODS[name],), {"terms": frame_by_frame}), name, **more)
    segments = torch.tensor([[1, 0, -1], [-1, 1, 1]])
    policy, reference = clips(0), clips(1) if method.needs_reference else None
    output = method.loss(policy, reference, labelled(segments))
    by = torch.autograd.grad(output.loss.sum(), [side.prediction for side in policy])
    assert method.count(labelled(segments)).tolist() == [2, 3]
    loss, errors = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for row, frame in segments.nonzero().tolist():

        def image(side, row=row, frame=frame):
            return given(side.prediction.detach()[row : row + 1, :, frame : frame + 1].requires_grad_(), 0.2)

        one, other = policy.map(image), reference and reference.map(image)
        alone = make(METHODS[name], name, **more).loss(one, other, batch(1, (1 + segments[row, frame].item()) / 2))
        loss[row] += alone.loss.item()
        errors[row] += alone.metrics["error/chosen"].item()
        for ours, theirs in zip(by, torch.autograd.grad(alone.loss, [x.prediction for x in one]), strict=True):
            torch.testing.assert_close(ours[row, :, frame], theirs[0, :, 0], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(output.loss.detach(), loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(output.metrics["error/chosen"], errors, rtol=1e-12, atol=0)
    assert not any(side[0, :, 1].any() for side in by), "a tie pulls at nothing"


@pytest.mark.parametrize("name", TWO_SIDED)
def test_ties_alone_are_a_loss_of_zero(name):
    method = make(type("Dense", (METHODS[name],), {"terms": frame_by_frame}), name, guard=0.6)
    segments = torch.tensor([[0, 0, 0], [0, 0, 0]])
    policy = clips(0)
    output = method.loss(policy, clips(1) if method.needs_reference else None, labelled(segments))
    assert output.loss.tolist() == [0, 0] and method.count(labelled(segments)).tolist() == [0, 0]
    assert not any(g.any() for g in torch.autograd.grad(output.loss.sum(), [side.prediction for side in policy]))


@pytest.mark.parametrize("name", TWO_SIDED)
def test_frames_are_averaged_before_the_objective(name):
    """`dense` null: a clip is one term, the same as an image that shows all its frames side by side."""
    method, policy = make(METHODS[name], name, guard=0.6), clips(0)
    reference = clips(1) if method.needs_reference else None
    wide = [
        side and side.map(lambda x: given(x.prediction.detach().reshape(2, 4, 1, 6, 2), 0.2))
        for side in (policy, reference)
    ]
    one = method.loss(policy, reference, labelled(torch.zeros(2, 3)))
    torch.testing.assert_close(one.loss.detach(), hand.judge(method, *wide).loss, rtol=1e-12, atol=0)
    assert method.count(labelled(torch.zeros(2, 3))).tolist() == [1, 1]


class Noting(METHODS["dpo"]):
    """Diffusion-DPO that notes how many terms its objective has seen."""

    seen: ClassVar[list[int]] = []

    def objective(self, margin, preference):
        self.seen.append(margin.numel())
        return super().objective(margin, preference)


@pytest.mark.parametrize(
    ("labels", "seen"),
    [((1, 1, 1), [3, 0]), ((0, 0, 0), [0, 3]), ((1, 0, 1), [2, 1]), ((1, 0.7, 0), [2, 2]), ((0.5, 0.5, 0.5), [3, 3])],
)
def test_a_direction_without_weight_is_not_computed(labels, seen):
    Noting.seen.clear()
    pairs = replace(batch(3), preference=torch.tensor(labels, dtype=torch.float64))
    Noting(beta=0.1).loss(rows(*[answers(1, 2)] * 3), rows(*[answers(1.5, 1)] * 3), pairs)
    assert Noting.seen == seen


@pytest.mark.parametrize("name", TWO_SIDED)
@pytest.mark.parametrize("labels", [(1, 1), (0, 0), (1, 0), (0, 0.7)])
def test_labels_of_a_batch_are_those_of_its_rows(name, labels):
    method = make(METHODS[name], name)
    policy = rows(answers(1, 2), answers(0.5, 0.8))
    reference = rows(answers(1.5, 1), answers(0.7, 0.6)) if method.needs_reference else None
    together = method.loss(policy, reference, replace(batch(2), preference=torch.tensor(labels, dtype=torch.float64)))
    by = torch.autograd.grad(together.loss.sum(), [side.prediction for side in policy])
    for i, (p, one) in enumerate(zip(labels, (answers(1, 2), answers(0.5, 0.8)), strict=True)):
        other = reference and reference.map(lambda x, i=i: given(x.prediction.detach()[i : i + 1]))
        assert hand.judge(method, one, other, p).loss.item() == pytest.approx(together.loss[i].item(), rel=1e-14)
        alone = hand.gradients(method, one, other, p)
        for ours, theirs in zip(by, alone, strict=True):
            torch.testing.assert_close(ours[i : i + 1], theirs, rtol=1e-13, atol=0)


@pytest.mark.parametrize("labels", [(1, 1), (0, 0), (1, 0)])
@pytest.mark.parametrize("name", ["dpo", "smpo", "hinge"])
def test_what_a_hard_label_excludes_may_be_infinite(name, labels):
    """The worse image's error overflows float32: the pair is as clear as can be, and its loss is zero.

    Learned the other way round its loss is infinite, and zero times that would be no number.
    """
    sides = [answers(1, 1e30) if p else answers(1e30, 1) for p in labels]
    policy = rows(*sides).map(lambda x: given(x.prediction.detach().float().requires_grad_()))
    reference = rows(*[answers(1, 1)] * 2).map(lambda x: given(x.prediction.detach().float()))
    pairs = replace(batch(2), preference=torch.tensor(labels, dtype=torch.float64))
    assert METHODS[name]().loss(policy, reference, pairs).loss.tolist() == [0, 0]
