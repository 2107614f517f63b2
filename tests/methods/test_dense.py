"""`dense`: labels for each frame, on answers that can be worked by hand, and with everything else that composes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hand import batch, clips, given, labelled
from tiny_steps import draws, moved, pair_batch, swapped

from diffpo.core.inversion import Inversion
from diffpo.core.step import preference_step
from diffpo.core.types import Denoised, Pair, StepOutput
from diffpo.methods import METHODS, PairwiseMethod, TwoSidedMethod

TWO_SIDED = [name for name, cls in METHODS.items() if issubclass(cls, TwoSidedMethod)]
DENSE = ("frame", "segment", "joint")
MORE = {"plain": {}, "guard and anchor": {"guard": 0.6, "sft_weight": 0.3}}
LABELS = torch.tensor([[1, 0, -1], [-1, 1, 1], [-1, -1, -1], [0, 0, 0]])


def make(name: str, **more) -> TwoSidedMethod:
    """A method whose logit is neither zero nor huge on answers of about one, with no anchor of its own."""
    scale = {"scale": 1.0} if name == "mapo" else {"beta": 0.1}
    return METHODS[name](**scale | {"sft_weight": 0.0, "sft_side": "better"} | more)


def judge(method: TwoSidedMethod, segments, sides=(0, 1), preference: float = 1.0) -> tuple[StepOutput, Pair]:
    """The loss of random clips, and its gradients by the policy's predictions."""
    policy, reference = (clips(seed, len(segments)) for seed in sides)
    output = method.loss(policy, reference if method.needs_reference else None, labelled(segments, preference))
    return output, Pair(*torch.autograd.grad(output.loss.sum(), [side.prediction for side in policy]))


def assert_equal(ours: tuple[StepOutput, Pair], theirs: tuple[StepOutput, Pair]) -> None:
    """Loss, metrics and gradients are the same numbers."""
    torch.testing.assert_close(ours[0].loss, theirs[0].loss, rtol=1e-12, atol=1e-14)
    for name, value in theirs[0].metrics.items():
        torch.testing.assert_close(ours[0].metrics[name], value, rtol=1e-12, atol=1e-14)
    for a, b in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def test_the_worked_example():
    """beta/2 times the differences of the errors is 2, 1, 1/2 and the labels 1, -1, 1, so inside = [2, -1, 1/2].

    Frame by frame (pseudo-code of DenseDPO): mean of softplus(-inside) = (0.12693 + 1.31326 + 0.47408) / 3 = 0.63809.
    Jointly (eq. 7): softplus(-(2 - 1 + 1/2)) = 0.20141. Eq. 7 adds up where our mean over the clip divides by its 3
    frames, so that its beta is 3 times as large here.
    """
    errors = torch.tensor([[0.0, 0.0, 0.0], [2.0, 1.0, 0.5]], dtype=torch.float64)
    policy = Pair(*(given(e.sqrt()[None, None, :, None, None].expand(1, 4, 3, 2, 2)) for e in errors))
    reference = Pair(*(given(torch.zeros(1, 4, 3, 2, 2, dtype=torch.float64)) for _ in range(2)))
    pairs = labelled(torch.tensor([[1, -1, 1]]))

    def mean(method: TwoSidedMethod) -> float:
        return (method.loss(policy, reference, pairs).loss.sum() / method.count(pairs).sum()).item()

    frame, joint = METHODS["dpo"](beta=2.0, dense="frame"), METHODS["dpo"](beta=6.0, dense="joint")
    assert mean(frame) == pytest.approx(0.63809, abs=5e-6)
    assert mean(joint) == pytest.approx(0.20141, abs=5e-6)
    assert mean(METHODS["dpo"](beta=2.0, dense="segment")) == pytest.approx(mean(frame), rel=1e-12), "runs of one frame"
    told = frame.loss(policy, reference, pairs).metrics
    assert told["rewards/accuracies"].item() == 2, "two of the three labels are met"
    assert told["rewards/margins"].item() == pytest.approx(1.5)
    assert told["error/chosen"].item() == pytest.approx(1.0), "of the better side: 0, 1 and 0"


def test_sft_on_the_chosen_clip_does_not_follow_the_labels():
    """Frame by frame: the error of the clip that the table calls chosen, where no tie is, with either label."""
    anchor = {"sft_weight": 0.3, "sft_side": "chosen", "dense": "frame"}
    plain, anchored = (judge(make("dpo", **more), LABELS)[0].loss for more in ({"dense": "frame"}, anchor))
    expected = 0.3 * (clips(0, len(LABELS)).chosen.error * LABELS.ne(0)).sum(1)
    torch.testing.assert_close(anchored - plain, expected.detach(), rtol=1e-10, atol=1e-14)


def test_the_pseudo_code_and_equation_7():
    """The loss of an update as the paper's appendix writes it, and its eq. 7 with a sum over the 3 frames of each clip.

    Errors are means over channels, height and width; l is 1, -1 or 0; s = M - R is a cost.
    """
    beta, (policy, reference) = 0.7, (clips(seed, len(LABELS)) for seed in (0, 1))
    costs = [(side.error - other.error).detach() for side, other in zip(policy, reference, strict=True)]
    inside = -0.5 * beta * LABELS.double() * (costs[0] - costs[1])
    dense = METHODS["densedpo"](beta=beta)
    loss = dense.loss(policy, reference, labelled(LABELS)).loss.sum() / dense.count(labelled(LABELS)).sum()
    assert loss.item() == pytest.approx(-torch.nn.functional.logsigmoid(inside[LABELS != 0]).mean().item(), rel=1e-12)
    joint = METHODS["dpo"](beta=3 * beta, dense="joint")
    found = joint.loss(policy, reference, labelled(LABELS)).loss
    expected = -torch.nn.functional.logsigmoid(inside.sum(1)) * LABELS.any(1)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("more", MORE.values(), ids=MORE)
@pytest.mark.parametrize("name", TWO_SIDED)
def test_a_term_for_each_frame_is_a_row_for_each_frame(name, more):
    """Loss, metrics and gradients of clips are sums of those of their frames: pairs of images, the better first."""
    plain = make(name, dense=None, **more)
    output, by = judge(make(name, dense="frame", **more), LABELS)
    policy, reference = clips(0, len(LABELS)), clips(1, len(LABELS))
    loss, metrics = torch.zeros(4, dtype=torch.float64), {key: torch.zeros(4).double() for key in output.metrics}
    for row, frame in LABELS.nonzero().tolist():

        def image(side: Denoised, row=row, frame=frame) -> Denoised:
            return given(side.prediction.detach()[row : row + 1, :, frame : frame + 1].requires_grad_(), 0.2)

        one, other = policy.map(image), reference.map(image)
        ordered = [pair if LABELS[row, frame] > 0 else pair.swapped() for pair in (one, other)]
        alone = plain.loss(ordered[0], ordered[1] if plain.needs_reference else None, batch())
        loss[row] += alone.loss.item()
        for key, value in alone.metrics.items():
            metrics[key][row] += value.item()
        for ours, theirs in zip(by, torch.autograd.grad(alone.loss, [x.prediction for x in one]), strict=True):
            torch.testing.assert_close(ours[row, :, frame], theirs[0, :, 0], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(output.loss.detach(), loss, rtol=1e-12, atol=0)
    for key, value in metrics.items():
        torch.testing.assert_close(output.metrics[key], value, rtol=1e-12, atol=1e-15)
    assert not any(side[LABELS[:, None, :, None, None].expand_as(side) == 0].any() for side in by), "ties pull nowhere"


@pytest.mark.parametrize("dense", DENSE)
@pytest.mark.parametrize("more", MORE.values(), ids=MORE)
@pytest.mark.parametrize("name", TWO_SIDED)
def test_one_segment_is_the_pair_as_a_whole(name, more, dense):
    """`segment` and `joint` give the loss without `dense`, to the last digits; `frame` where there is one frame."""
    ones = torch.ones(2, 1 if dense == "frame" else 3, dtype=torch.long)

    def both(method: TwoSidedMethod, segments) -> tuple[StepOutput, Pair]:
        policy, reference = (clips(seed, 2, (4, segments.shape[1], 2, 2)) for seed in (0, 1))
        output = method.loss(policy, reference if method.needs_reference else None, labelled(segments))
        return output, Pair(*torch.autograd.grad(output.loss.sum(), [side.prediction for side in policy]))

    method, plain = make(name, dense=dense, **more), make(name, dense=None, **more)
    assert method.count(labelled(ones)).tolist() == [1, 1]
    assert_equal(both(method, ones), both(plain, ones))


@pytest.mark.parametrize("dense", DENSE)
@pytest.mark.parametrize("more", MORE.values(), ids=MORE)
@pytest.mark.parametrize("name", TWO_SIDED)
def test_swapping_the_clips_and_negating_the_labels_changes_nothing(name, more, dense):
    method = make(name, dense=dense, **more)
    there, by = judge(method, LABELS)
    policy, reference = (clips(seed, len(LABELS)).swapped() for seed in (0, 1))
    output = method.loss(policy, reference if method.needs_reference else None, labelled(-LABELS))
    back = Pair(*torch.autograd.grad(output.loss.sum(), [side.prediction for side in policy]))
    assert_equal((output, back), (there, by.swapped()))
    assert torch.equal(method.count(labelled(-LABELS)), method.count(labelled(LABELS)))


def test_terms_of_runs_and_of_all():
    """Four frames: two runs and a tie between them, whose frames count in no run; jointly each frame weighs 1/4."""
    pairs = labelled(torch.tensor([[1, 1, 0, -1], [0, 0, 0, 0], [-1, 1, 1, -1]]))
    runs, joint = (METHODS["dpo"](dense=dense).terms(pairs) for dense in ("segment", "joint"))
    half = [[0.5, 0.5, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]]
    assert runs.row.tolist() == [0, 0, 2, 2, 2] and runs.weight.tolist() == half
    assert joint.row.tolist() == [0, 2] and joint.weight.tolist() == [[0.25, 0.25, 0, 0.25], [0.25] * 4]
    assert METHODS["dpo"](dense="frame").count(pairs).tolist() == [3, 0, 4]


@pytest.mark.parametrize("dense", DENSE)
@pytest.mark.parametrize("name", TWO_SIDED)
def test_ties_alone_are_a_loss_of_zero_with_a_graph(name, dense):
    ties = torch.zeros(2, 3, dtype=torch.long)
    method = make(name, dense=dense, guard=0.6, sft_weight=0.3)
    output, by = judge(method, ties)
    assert output.loss.tolist() == [0, 0] and method.count(labelled(ties)).tolist() == [0, 0]
    assert not any(side.any() for side in by)


@pytest.mark.parametrize("name", TWO_SIDED)
def test_labels_of_frames_stand_in_the_place_of_the_pairs(name):
    """A pair as a whole is often a tie where its frames are not."""
    method = make(name, dense="segment", guard=0.6)
    assert_equal(judge(method, LABELS, preference=0.5), judge(method, LABELS, preference=1.0))


@pytest.mark.parametrize("inversion", [None, Inversion(steps=3, renoise=1)], ids=["noise", "inversion"])
@pytest.mark.parametrize("name", TWO_SIDED)
def test_everything_together(pipelines, name, inversion):
    """Two captions, inversion, guard, anchor, Flow-DPO's weights, labels of frames: of images, one labelled -1.

    That one is the pair with exchanged sides, and the tie leaves the others as they were.
    """
    models, more = moved(pipelines("sd3")), {"inversion": inversion, "guard": 0.6, "sft_weight": 0.3}
    more["sft_side"] = "better"
    scale = {} if name == "mapo" else {"beta": 50.0}
    if issubclass(METHODS[name], PairwiseMethod):
        scale["flow_weight"] = "squared"
    pairs = pair_batch("sd3", [0, 1, 2], torch.float64)
    dense = METHODS[name](dense="frame", **scale, **more)
    models = models if dense.needs_reference else (models[0], None)
    marked = replace(pairs, segments=torch.tensor([[1], [-1], [0]]))
    together = preference_step(dense, *models, marked, draws(pairs)).loss
    plain = METHODS[name](dense=None, **scale, **more)
    there, back = (preference_step(plain, *models, each, draws(pairs)).loss for each in (pairs, swapped(pairs)))
    assert together[0].item() == pytest.approx(there[0].item(), rel=1e-9)
    assert together[1].item() == pytest.approx(back[1].item(), rel=1e-9) != pytest.approx(there[1].item(), rel=1e-6)
    assert together[2].item() == 0


@pytest.mark.parametrize("dense", DENSE)
def test_clips_of_a_video_model(pipelines, dense):
    """Through the network: swapped clips with negated labels lose the same, and one segment is the pair as a whole."""
    models, pairs = moved(pipelines("wan")), pair_batch("wan", [0, 1, 2], torch.float64)
    method = METHODS["dpo"](beta=50.0, dense=dense, guard=0.6, sft_weight=0.3)

    def losses(method, pairs, segments) -> torch.Tensor:
        marked = replace(pairs, segments=torch.tensor(segments))
        return preference_step(method, *models, marked, draws(pairs)).loss

    labels, negated = [[1, -1, 0], [0, 0, 0], [1, 1, 1]], [[-1, 1, 0], [0, 0, 0], [-1, -1, -1]]
    there, back = losses(method, pairs, labels), losses(method, swapped(pairs), negated)
    torch.testing.assert_close(back, there, rtol=1e-4, atol=0)  # a part of the network computes in single precision
    assert there[1].item() == 0 and there[0].item() > 0
    whole = losses(METHODS["dpo"](beta=50.0, guard=0.6, sft_weight=0.3), pairs, labels)
    if dense == "frame":
        assert not torch.isclose(there[2], 3 * whole[2], rtol=1e-9), "the sigmoid of a mean is not a mean of sigmoids"
    else:
        assert there[2].item() == pytest.approx(whole[2].item(), rel=1e-9)


def test_what_a_step_weighs(pipelines):
    """A row's weight multiplies its loss, and neither its metrics nor its number of terms."""
    models, pairs = moved(pipelines("sd15")), pair_batch("sd15", [0, 1, 2], torch.float64)
    method = METHODS["dpo"](beta=50.0)
    plain = preference_step(method, *models, pairs, draws(pairs))
    weighed = replace(pairs, weight=torch.tensor([2.0, 0.0, 0.5]))
    output = preference_step(method, *models, weighed, draws(pairs))
    assert torch.equal(output.loss, plain.loss * torch.tensor([2.0, 0.0, 0.5]))
    assert all(torch.equal(output.metrics[name], value) for name, value in plain.metrics.items())
    assert torch.equal(method.count(weighed), method.count(pairs))
    assert not math.isclose(output.loss.sum().item(), plain.loss.sum().item())
