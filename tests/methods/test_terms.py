"""What a row's loss is a sum of, and which directions of a label are computed."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import hand
import pytest
import torch
from hand import answers, batch, clips, given, labelled, rows

from diffpo.methods import METHODS, TwoSidedMethod

TWO_SIDED = [name for name, cls in METHODS.items() if issubclass(cls, TwoSidedMethod) and cls().dense is None]


def make(cls: type[TwoSidedMethod], name: str, **more) -> TwoSidedMethod:
    return cls(**({"scale": 1.0} if name == "mapo" else {"beta": 0.1}), **more)


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
