"""What the methods have in common, on answers whose numbers can be worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hand import answers, batch, gradients, judge, rows
from tiny_steps import draws, moved, pair_batch

from diffpo.core.process import DiscreteProcess, FlowProcess
from diffpo.core.step import preference_step
from diffpo.core.types import Condition, Pair
from diffpo.errors import ConfigError
from diffpo.methods import METHODS, PairwiseMethod, TwoSidedMethod

PAIRWISE = [name for name, cls in METHODS.items() if issubclass(cls, PairwiseMethod)]
TWO_SIDED = [name for name, cls in METHODS.items() if issubclass(cls, TwoSidedMethod)]
JUDGING = [name for name in TWO_SIDED if METHODS[name]().needs_reference]
"""Methods that compare with a reference."""
SOFT = [name for name in TWO_SIDED if METHODS[name]().dense is None]
"""Methods that read `preference`; with `dense`, the labels of frames stand in its place."""

REFERENCE = answers(1.5, 1)


def make(name: str, beta: float = 0.1, **more) -> TwoSidedMethod:
    """A method whose logit is neither zero nor huge on answers of about one, with no anchor of its own."""
    scale = {"scale": 1.0} if name == "mapo" else {"beta": beta}
    return METHODS[name](**scale | {"sft_weight": 0.0, "sft_side": "better"} | more)


def reference(name: str) -> Pair | None:
    return REFERENCE if name in JUDGING else None


EQUAL = {
    "dpo": math.log(2),
    "inpo": math.log(2),
    "smpo": math.log(2),
    "dcpo": math.log(2),
    "densedpo": math.log(2),
    "ppd": math.log(2),
    "rpo": math.log(2),
    "cdpo": math.log(2),
    "rdpo": math.log(2),  # [(1 - e) log 2 - e log 2] / (1 - 2 e)
    "ipo": 25.0,  # (1 / (2 * 0.1))^2
    "hinge": 1.0,
    "dmpo": 0.5 * math.log(0.5 / 0.99) + 0.5 * math.log(0.5 / 0.01),  # KL(1/2 || 0.99)
    "kto": 0.5,  # each image: 1 - sigmoid(g - g), or 1 - sigmoid(0) where the mean is negative
    "dspo": 4.0,  # no correction is left: the chosen image's error
}


@pytest.mark.parametrize("name", JUDGING)
def test_policy_equal_to_reference(name):
    """Beta 0.1; policy and reference answer 2 and 3 where 0 was right."""
    output = judge(make(name), answers(2, 3), answers(2, 3))
    assert output.loss.item() == pytest.approx(EQUAL[name], rel=1e-14)
    assert output.metrics["rewards/margins"].item() == 0 and output.metrics["rewards/accuracies"].item() == 0.5


def test_only_mapo_has_no_reference():
    assert set(TWO_SIDED) - set(JUDGING) == {"mapo"}
    assert set(METHODS) - set(TWO_SIDED) == {"sft"}


@pytest.mark.parametrize("name", TWO_SIDED)
def test_swapping_the_pair_negates_u(name):
    there = judge(make(name), answers(1, 2), reference(name)).metrics
    back = judge(make(name), answers(2, 1), reference(name) and reference(name).swapped()).metrics
    assert there["rewards/margins"].item() > 0.1
    assert back["rewards/margins"].item() == -there["rewards/margins"].item()
    assert back["rewards/chosen"].item() == there["rewards/rejected"].item()


@pytest.mark.parametrize("errors", [(1.0, 1.2), (1.2, 1.0), (0.9, 0.9)])
@pytest.mark.parametrize("name", [name for name in TWO_SIDED if name != "dspo"])  # a regression: see test_dspo
def test_gradient_direction(name, errors):
    """The loss falls with the chosen error and rises with the rejected one; predictions lie above their target of 0.

    IPO, hinge, cDPO and DMPO have had enough at some margin: none is reached here, u is within 0.1 of 0.
    """
    by = gradients(make(name), answers(*errors), reference(name))
    assert (by.chosen > 0).all() and (by.rejected < 0).all()


@pytest.mark.parametrize(("preference", "sign"), [(1.0, 1), (0.6, 1), (0.5, 0), (0.2, -1)])
def test_smpo_pulls_as_its_label_says(preference, sign):
    """Equal images give no gradient; below one half the sides change roles."""
    method = METHODS["smpo"](beta=0.01)
    by = gradients(method, answers(1, 1.2), REFERENCE, preference)
    assert (by.chosen.sign() == sign).all() and (by.rejected.sign() == -sign).all()


@pytest.mark.parametrize("preference", [1.0, 0.5, 0.3])
def test_smpo_scales_the_logit(preference):
    """beta 2, u = 4.25 (test_dpo); gamma 0.8: factor 0.8 (2 p - 1) is 0.8, 0, -0.32 for p = 1, 0.5, 0.3."""
    factor = {1.0: 0.8, 0.5: 0.0, 0.3: -0.32}[preference]
    output = judge(METHODS["smpo"](beta=2.0, gamma=0.8), answers(1, 2), REFERENCE, preference)
    assert output.loss.item() == pytest.approx(math.log1p(math.exp(-factor * 4.25)), rel=1e-12)
    assert output.metrics["rewards/margins"].item() == pytest.approx(4.25), "logged before the factor"


@pytest.mark.parametrize("name", [name for name in SOFT if name != "smpo"])
@pytest.mark.parametrize("preference", [0.0, 0.3, 0.5, 1.0])
def test_a_soft_label_is_an_expectation(name, preference):
    """p L(chosen, rejected) + (1 - p) L(rejected, chosen), from two published losses with p = 1."""
    policy, other = answers(1, 2), reference(name)
    forth = judge(make(name), policy, other).loss.item()
    back = judge(make(name), policy.swapped(), other and other.swapped()).loss.item()
    soft = judge(make(name), policy, other, preference).loss.item()
    assert abs(forth - back) > 1e-3
    assert soft == pytest.approx(preference * forth + (1 - preference) * back, rel=1e-14)


def test_a_soft_label_by_hand():
    """Hinge, beta 0.1: u = 0.2125 (test_dpo: 4.25 with beta 2); 3/4 (1 - 0.2125) + 1/4 (1 + 0.2125) = 0.89375."""
    loss = judge(make("hinge"), answers(1, 2), REFERENCE, 0.75).loss
    assert loss.item() == pytest.approx(0.89375, rel=1e-14)


@pytest.mark.parametrize("more", [{}, {"sft_weight": 0.3}, {"guard": 0.6}], ids=["plain", "sft_weight", "guard"])
@pytest.mark.parametrize("name", SOFT)
def test_the_order_of_the_table_does_not_matter(name, more):
    """Sides exchanged and p -> 1 - p: the same loss, the same gradients."""
    method, policy, other = make(name, **more), answers(1, 1.2), reference(name)
    there = judge(method, policy, other, 0.7).loss.item()
    back = judge(method, policy.swapped(), other and other.swapped(), 1 - 0.7).loss.item()
    assert back == pytest.approx(there, rel=1e-13)
    by, by_swapped = (
        gradients(method, policy, other, 0.7),
        gradients(method, policy.swapped(), other and other.swapped(), 1 - 0.7),
    )
    torch.testing.assert_close(by_swapped.rejected, by.chosen, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(by_swapped.chosen, by.rejected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("preference", [1.0, 0.75])
@pytest.mark.parametrize("name", SOFT)
def test_sft_weight_adds_the_error_of_the_better_image(name, preference):
    """Errors 1 and 4, weight 0.3: 0.3 [p 1 + (1 - p) 4] more, and the gradient of that."""
    policy, other = answers(1, 2), reference(name)
    plain, anchored = (judge(make(name, sft_weight=w), policy, other, preference).loss.item() for w in (0, 0.3))
    assert anchored - plain == pytest.approx(0.3 * (preference * 1 + (1 - preference) * 4), rel=1e-12)
    before, after = (gradients(make(name, sft_weight=w), policy, other, preference) for w in (0, 0.3))
    torch.testing.assert_close(after.chosen - before.chosen, torch.full_like(after.chosen, 0.3 * preference / 8))
    torch.testing.assert_close(
        after.rejected - before.rejected, torch.full_like(after.chosen, 0.3 * (1 - preference) / 4)
    )


@pytest.mark.parametrize("preference", [1.0, 0.75])
@pytest.mark.parametrize("name", TWO_SIDED)
def test_sft_on_the_chosen_side_does_not_read_the_label(name, preference):
    """Errors 1 and 4, weight 0.3: 0.3 more whatever the label, and no gradient of it on the other side."""
    policy, other, anchor = answers(1, 2), reference(name), {"sft_weight": 0.3, "sft_side": "chosen"}
    plain, anchored = (judge(make(name, **more), policy, other, preference).loss.item() for more in ({}, anchor))
    assert anchored - plain == pytest.approx(0.3, rel=1e-12)
    before, after = (gradients(make(name, **more), policy, other, preference) for more in ({}, anchor))
    torch.testing.assert_close(after.chosen - before.chosen, torch.full_like(after.chosen, 0.3 / 8))
    assert torch.equal(after.rejected, before.rejected)


def test_rpo_by_hand():
    """Errors: policy 1, 4; reference 2.25, 1; beta 2: u = 4.25 (test_dpo), and beta 2 is RPO's own.

    p = 0.75: 1 + 3/4 log(1 + e^-4.25) + 1/4 log(1 + e^4.25).
    """
    loss = judge(METHODS["rpo"](), answers(1, 2), REFERENCE, 0.75).loss.item()
    expected = 1 + 0.75 * math.log1p(math.exp(-4.25)) + 0.25 * math.log1p(math.exp(4.25))
    assert loss == pytest.approx(expected, rel=1e-12)


@pytest.fixture(scope="module")
def step(pipelines):
    """One step of a method on one and the same tiny model."""
    models = moved(pipelines("sd15"))

    def run(method, changed=None):
        pairs = pair_batch("sd15", [0, 1, 2], torch.float64)
        return preference_step(method, *models, pairs if changed is None else changed(pairs), draws(pairs))

    return run


@pytest.mark.parametrize(
    "same",
    [
        METHODS["smpo"](beta=50.0, gamma=1.0, inversion=None),
        METHODS["inpo"](beta=50.0, inversion=None),
        METHODS["cdpo"](beta=50.0, label_smoothing=0.0),
        METHODS["rdpo"](beta=50.0, flip_rate=0.0),
        METHODS["densedpo"](beta=50.0),
        METHODS["ppd"](beta=50.0),
    ],
    ids=lambda method: type(method).__name__,
)
def test_what_is_dpo_in_disguise(step, same):
    """To the bit, in the step and its gradients."""
    plain, other = step(METHODS["dpo"](beta=50.0)), step(same)
    assert torch.equal(other.loss, plain.loss) and plain.loss.std() > 1e-4
    assert all(torch.equal(other.metrics[name], value) for name, value in plain.metrics.items())


def test_dcpo_with_equal_captions_is_dpo(step):
    """DPO is told the prompt on both sides, DCPO two captions that say the same."""

    def one_prompt(pairs):
        return replace(pairs, cond=Pair(pairs.cond.chosen, pairs.cond.chosen))

    def two_captions(pairs):
        return replace(pairs, cond=Pair(pairs.cond.chosen, Condition(pairs.cond.chosen.text.clone())))

    plain = step(METHODS["dpo"](beta=50.0), one_prompt)
    assert torch.equal(step(METHODS["dcpo"](beta=50.0), two_captions).loss, plain.loss)
    assert not torch.isclose(step(METHODS["dcpo"](beta=50.0)).loss, plain.loss).any()


def test_rpo_with_equal_captions_and_hard_labels_is_dpo_and_sft(step):
    """The losses add up; soft labels and two captions change them."""

    def one_caption(pairs):
        return replace(pairs, cond=Pair(pairs.cond.chosen, pairs.cond.chosen))

    def unsure(pairs):
        return replace(one_caption(pairs), preference=torch.full((3,), 0.6))

    rpo = METHODS["rpo"](beta=50.0)
    together, dpo, sft = (step(x, one_caption).loss for x in (rpo, METHODS["dpo"](beta=50.0), METHODS["sft"]()))
    torch.testing.assert_close(together, dpo + sft, rtol=1e-9, atol=0)
    for other in (step(rpo).loss, step(rpo, unsure).loss):
        assert not torch.isclose(other, together).any()


@pytest.mark.parametrize("name", PAIRWISE)
def test_flow_weight_is_a_beta_for_each_row(name):
    """(1 - t)^2 = alpha^2 multiplies the margin: rows with alpha 1 and 1/2 are judged by 1 and 1/4 of theirs."""
    level = torch.tensor([1.0, 0.5], dtype=torch.float64)
    sides = [rows(*[pair] * 2) for pair in (answers(1, 2), REFERENCE)]
    policy, other = (
        side.map(lambda x: replace(x, noised=replace(x.noised, alpha=level, sigma=1 - level))) for side in sides
    )
    output = make(name, flow_weight="squared").loss(policy, other, batch(2))
    plain = make(name).loss(policy, other, batch(2))
    at = make(name).objective(torch.tensor([2.125, 2.125 / 4], dtype=torch.float64), torch.ones(2))
    torch.testing.assert_close(output.loss, at, rtol=1e-12, atol=0)
    for key in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        torch.testing.assert_close(output.metrics[key], plain.metrics[key] * level.square(), rtol=1e-12, atol=0)
    assert torch.equal(output.metrics["error/chosen"], plain.metrics["error/chosen"])


def test_flow_weight_is_for_flow_models():
    discrete = DiscreteProcess(prediction="v", alphas_cumprod=torch.linspace(0.999, 0.005, 1000))
    method = METHODS["dpo"](flow_weight="squared")
    method.check_process(FlowProcess())
    METHODS["dpo"]().check_process(discrete)
    with pytest.raises(ConfigError, match="flow_weight=squared is for flow models; this one predicts v"):
        method.check_process(discrete)


def test_errors_of_the_noise_are_errors_of_the_velocity_squared():
    """What `squared` is for: |eps - eps'|^2 = (1 - t)^2 |v - v'|^2, at any t."""
    process, t = FlowProcess(), torch.tensor([0.2, 0.7], dtype=torch.float64)
    x0, eps, wrong = torch.randn(3, 2, 4, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    level, z = process.alpha_sigma(t), process.mix(x0, eps, t)
    implied = process.split(wrong, z, level)[1]
    errors = [(a - b).square().mean((1, 2, 3, 4)) for a, b in ((implied, eps), (wrong, process.target(x0, eps, t)))]
    torch.testing.assert_close(errors[0], (1 - t) ** 2 * errors[1])


def test_independent_noise_and_inversion_exclude_each_other():
    with pytest.raises(ConfigError, match="noise=independent says how random noise is drawn"):
        METHODS["inpo"](noise="independent")
    assert METHODS["dpo"](noise="independent").inversion is None


REFUSED = [
    *((name, {"beta": beta}, f"beta is {beta}; it must be above 0") for name in JUDGING for beta in (0.0, -1.0)),
    *((name, {"beta": math.inf}, "beta is inf; it must be finite and above 0") for name in JUDGING),
    *((name, {"beta": math.nan}, "beta is nan; it must be finite and above 0") for name in JUDGING),
    *((name, {"sft_weight": -0.1}, "sft_weight is -0.1; it must be at least 0") for name in TWO_SIDED),
    *((name, {"guard": 1.5}, "guard is 1.5; it must be at least 0 and at most 1") for name in TWO_SIDED),
    ("dpo", {"guard": -0.1}, "at least 0 and at most 1"),
    ("dpo", {"guard": math.nan}, "finite and at least 0"),
    ("dpo", {"sft_weight": math.nan}, "finite and at least 0"),
    ("cdpo", {"label_smoothing": 0.5}, r"label_smoothing is 0\.5; it must be at least 0 and below 0\.5"),
    ("cdpo", {"label_smoothing": -0.1}, "at least 0"),
    ("rdpo", {"flip_rate": 0.5}, r"flip_rate is 0\.5; it must be at least 0 and below 0\.5"),
    ("dmpo", {"alpha": 0.0}, r"alpha is 0\.0; it must be above 0 and below 0\.5"),
    ("dmpo", {"alpha": 0.5}, "below 0.5"),
    ("smpo", {"gamma": 0.0}, r"gamma is 0\.0; it must be above 0"),
    ("smpo", {"gamma": math.nan}, "finite and above 0"),
    ("kto", {"desirable_weight": -1.0}, r"desirable_weight is -1\.0; it must be at least 0"),
    ("kto", {"undesirable_weight": -1.0}, r"undesirable_weight is -1\.0; it must be at least 0"),
    ("mapo", {"weight": 0.0}, r"weight is 0\.0; it must be above 0"),
    ("mapo", {"snr": -1.0}, r"snr is -1\.0; it must be above 0"),
    ("mapo", {"scale": 0.0}, r"scale is 0\.0; it must be above 0"),
    ("kto", {"desirable_weight": math.nan}, "finite and at least 0"),
    ("mapo", {"scale": math.nan}, "finite and above 0"),
]


@pytest.mark.parametrize(("name", "given", "told"), REFUSED)
def test_bad_hyper_parameters_are_refused(name, given, told):
    with pytest.raises(ConfigError, match=told):
        METHODS[name](**given)


@pytest.mark.parametrize(("name", "given"), [("cdpo", {"label_smoothing": 0.0}), ("dpo", {"guard": 0.0})])
def test_the_ends_of_a_range_are_allowed(name, given):
    METHODS[name](**given)


def test_one_term_per_row():
    assert all(METHODS[name]().count(batch(3)).tolist() == [1, 1, 1] for name in METHODS)
