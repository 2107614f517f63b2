"""Inversion: exact landing, the released grid by hand, ReNoise, who is asked what, and rows that do not mix."""

from __future__ import annotations

import itertools

import pytest
import torch
from processes import process, some
from torch import Tensor

from diffpo.core.inversion import Inversion, invert
from diffpo.core.process import expand
from diffpo.core.types import Condition, Noised, Pair, Rng
from diffpo.errors import ConfigError

TIMES = torch.tensor([0, 1, 37, 420, 803, 999])
LATENT = Pair(some(0, 6), some(1, 6))
EPS = some(2, 6)
ROWS = torch.arange(6)


class Told:
    """A network that implies a chosen noise (or velocity) at any z and t, and remembers what it was asked."""

    def __init__(self, process, imply, extra_calls: int = 0):
        """`imply(rows, z, t)` is the noise, or the velocity of a flow; each row is known by its caption."""
        self.process, self.imply, self.extra_calls = process, imply, extra_calls
        self.calls: list[tuple[list[int], list[float]]] = []

    def predict(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        rows = cond.text.flatten().long()
        self.calls.append((rows.tolist(), t.tolist()))
        implied = self.imply(rows, z, t)
        if self.process.prediction != "v":
            return implied
        alpha, sigma = (expand(x, z) for x in self.process.alpha_sigma(t))
        return (implied - sigma * z) / alpha

    def lockstep(self, n: int) -> int:
        return n + self.extra_calls


def constant(prediction: str, **more) -> Told:
    """Row i always implies EPS[i]."""
    return Told(process(prediction, **more), lambda rows, z, t: EPS[rows])


def affine(prediction: str, **more) -> Told:
    """The noise (or velocity) 0.3 z + t / 1000: it depends on where and when it is asked."""
    return Told(process(prediction, **more), lambda rows, z, t: 0.3 * z + expand(t.double() / 1000, z))


def walk(network: Told, t: Tensor, rows: Tensor | None = None, seed: int = 0, **how) -> Pair[Noised]:
    """Invert some rows of LATENT."""
    rows = ROWS[: len(t)] if rows is None else rows
    cond = Condition(rows.double().reshape(-1, 1, 1))
    latent = LATENT.map(lambda x: x[rows])
    return invert(network, latent, Pair(cond, cond), t, Rng(seed, 0, rows), Inversion(**how))


def levels(one, t: int) -> tuple[float, float]:
    alpha, sigma = one.alpha_sigma(torch.tensor([t]))
    return alpha.item(), sigma.item()


@pytest.mark.parametrize("renoise", [0, 1])
@pytest.mark.parametrize("steps", [1, 5, 10])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_exact_landing(prediction, steps, renoise):
    """A network that always means the same noise: z = alpha x0 + sigma eps at any t, and that noise is recovered."""
    network = constant(prediction)
    noised = walk(network, TIMES, steps=steps, renoise=renoise)
    for side, x0 in zip(noised, LATENT, strict=True):
        torch.testing.assert_close(side.z, network.process.mix(x0, EPS, TIMES), rtol=0, atol=1e-5)
        torch.testing.assert_close(side.target, network.process.target(x0, EPS, TIMES), rtol=0, atol=1e-5)
        assert side.t is TIMES and torch.equal(side.alpha, network.process.alpha_sigma(TIMES)[0])


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("renoise", [0, 1])
@pytest.mark.parametrize("steps", [1, 5, 10])
def test_exact_landing_of_flow(steps, renoise, shift):
    """A constant velocity v: z = x0 + t v, and v is the target."""
    t = torch.tensor([1e-3, 0.037, 0.2, 0.42, 0.803, 0.999], dtype=torch.float64)
    noised = walk(constant("flow", shift=shift), t, steps=steps, renoise=renoise)
    for side, x0 in zip(noised, LATENT, strict=True):
        torch.testing.assert_close(side.z, x0 + expand(t, x0) * EPS, rtol=0, atol=1e-10)
        torch.testing.assert_close(side.target, EPS, rtol=0, atol=1e-9)


@pytest.mark.parametrize("landing", ["exact", "released"])
def test_renoise_has_nothing_to_correct_where_the_noise_is_constant(landing):
    plain, renoised = (walk(constant("eps"), TIMES, landing=landing, renoise=k) for k in (0, 2))
    torch.testing.assert_close(renoised.chosen.z, plain.chosen.z, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
def test_one_renoise_correction_is_a_trapezoid_step(prediction):
    """One step from clean to t: e0 asked at (x0, 0), e1 at the point that e0 leads to, told t; along their mean."""
    network = affine(prediction)
    t = torch.tensor([0.42], dtype=torch.float64) if prediction == "flow" else torch.tensor([420])
    z, x0 = walk(network, t, steps=1, renoise=1).chosen.z, LATENT.chosen[:1]
    alpha, sigma = (1.0, 0.42) if prediction == "flow" else levels(network.process, 420)
    e0 = 0.3 * x0
    e1 = 0.3 * (alpha * x0 + sigma * e0) + t.item() / 1000
    torch.testing.assert_close(z, alpha * x0 + sigma * (e0 + e1) / 2, rtol=1e-12, atol=1e-12)
    assert [asked for _, asked in network.calls] == [[0, 0], [t.item()] * 2]


def test_two_corrections_take_the_mean_of_three():
    """e2 is asked at the point that e1 leads to."""
    x0, (alpha, sigma) = LATENT.chosen[:1], levels(process("eps"), 420)
    e0 = 0.3 * x0
    e1 = 0.3 * (alpha * x0 + sigma * e0) + 0.42
    e2 = 0.3 * (alpha * x0 + sigma * e1) + 0.42
    z = walk(affine("eps"), torch.tensor([420]), steps=1, renoise=2).chosen.z
    torch.testing.assert_close(z, alpha * x0 + sigma * (e0 + e1 + e2) / 3, rtol=1e-12, atol=1e-12)


RELEASED = [
    (10, 0, [-99], 1),
    (10, 1, [-99], 1),
    (10, 2, [-99, 1], 101),
    (10, 150, [-99, 1, 101], 201),
    (10, 201, [-99, 1, 101], 201),
    (10, 500, [-99, 1, 101, 201, 301, 401], 501),
    (10, 801, [-99, *range(1, 702, 100)], 801),
    (10, 802, [-99, *range(1, 802, 100)], 901),
    (10, 999, [-99, *range(1, 802, 100)], 901),
    (5, 0, [-199], 1),
    (5, 420, [-199, 1, 201, 401], 601),
    (5, 999, [-199, 1, 201, 401, 601], 801),
]


@pytest.mark.parametrize(("steps", "t", "told", "landed"), RELEASED)
@pytest.mark.parametrize("clean_abar", [None, 1.0])
def test_released_grid_by_hand(steps, t, told, landed, clean_abar):
    """diffusers 0.20, 1000 times, steps_offset 1: the network is told each step's origin, z lands on the grid.

    z / alpha moves with sigma / alpha along a constant noise, so z = a (x0 - s0 eps) / a0 + s eps with (a, s) the level
    landed on and (a0, s0) that of the start: of t = 0, or (1, 0) where the scheduler says `set_alpha_to_one`. Target
    and levels are those of t all the same.
    """
    network = constant("eps", clean_abar=clean_abar)
    noised = walk(network, torch.tensor([t]), steps=steps, landing="released").chosen
    assert [asked for _, asked in network.calls] == [[origin] * 2 for origin in told]
    x0, eps = LATENT.chosen[:1], EPS[:1]
    (a, s), (a0, s0) = levels(network.process, landed), (levels(network.process, 0) if clean_abar is None else (1, 0))
    torch.testing.assert_close(noised.z, a * (x0 - s0 * eps) / a0 + s * eps, rtol=1e-9, atol=1e-12)
    alpha, sigma = levels(network.process, t)
    assert (noised.alpha.item(), noised.sigma.item(), noised.t.item()) == (alpha, sigma, t)
    torch.testing.assert_close(noised.target, (noised.z - alpha * x0) / sigma, rtol=1e-9, atol=1e-9)


def test_released_renoise_by_hand():
    """N = 2, t = 420: origins -499 and 1; each correction is told the origin, not the point reached."""
    network = affine("eps")
    z = walk(network, torch.tensor([420]), steps=2, renoise=1, landing="released").chosen.z
    x = LATENT.chosen[:1]
    for origin, here, there in ((-499, 0, 1), (1, 1, 501)):
        (a, s), (a_there, s_there) = levels(network.process, here), levels(network.process, there)

        def along(e, x=x, a=a, s=s, a_there=a_there, s_there=s_there):
            return a_there * (x - s * e) / a + s_there * e

        e0 = 0.3 * x + origin / 1000
        e1 = 0.3 * along(e0) + origin / 1000
        x = along((e0 + e1) / 2)
    torch.testing.assert_close(z, x, rtol=1e-11, atol=1e-11)
    assert [asked[0] for _, asked in network.calls] == [-499, -499, 1, 1]


def test_exact_grid_by_hand():
    """Told 0, 100, ... below t; t itself is asked only by a correction."""
    for t, told in ((0, [0]), (1, [0]), (100, [0]), (101, [0, 100]), (420, [0, 100, 200, 300, 400])):
        network = constant("eps")
        walk(network, torch.tensor([t]))
        assert [asked[0] for _, asked in network.calls] == told
    network = constant("eps")
    walk(network, torch.tensor([150]), renoise=1)
    assert [asked[0] for _, asked in network.calls] == [0, 100, 100, 150]
    network = constant("flow", shift=3.0)  # the grid 0, 1/10, 2/10 ... shifted: 3 k / (10 + 2 k)
    walk(network, torch.tensor([0.45], dtype=torch.float64))
    assert [asked[0] for _, asked in network.calls] == pytest.approx([0, 3 / 12, 6 / 14])


@pytest.mark.parametrize("renoise", [0, 1])
@pytest.mark.parametrize("landing", ["exact", "released"])
def test_only_pairs_that_have_not_arrived_are_asked(landing, renoise):
    """t = 0, 1, 37, 420, 803, 999: the exact grid has 1, 1, 1, 5, 9, 10 points below, the released one 1, 1, 2, 6, 10,
    10. A forward holds both sides of the active pairs, in their order."""
    steps = {"exact": [1, 1, 1, 5, 9, 10], "released": [1, 1, 2, 6, 10, 10]}[landing]
    network = constant("eps")
    walk(network, TIMES, landing=landing, renoise=renoise)
    active = [[i for i in range(6) if steps[i] > k] for k in range(10)]
    assert [rows for rows, _ in network.calls] == [both * 2 for both in active for _ in range(1 + renoise)]
    assert sum(len(rows) for rows, _ in network.calls) == 2 * sum(steps) * (1 + renoise)


@pytest.mark.parametrize("renoise", [0, 1])
def test_the_rows_arrive_alone_as_in_a_batch(renoise):
    """With a noise that depends on z and t, for eps, v and flow."""
    for prediction in ("eps", "v", "flow"):
        t = TIMES / 1000 + 5e-4 if prediction == "flow" else TIMES
        together = walk(affine(prediction), t, renoise=renoise)
        for row in ROWS.split(1):
            alone = walk(affine(prediction), t[row], row, renoise=renoise)
            torch.testing.assert_close(alone.rejected.z, together.rejected.z[row], rtol=1e-12, atol=1e-12)


def test_company_for_other_processes_changes_nothing():
    """Where `lockstep` asks for 2 calls more, the network is asked twice about a row that has arrived."""
    alone, kept = affine("eps"), affine("eps")
    kept.extra_calls = 2
    t = torch.tensor([37, 420])
    expected, noised = walk(alone, t, renoise=1), walk(kept, t, renoise=1)
    assert torch.equal(noised.chosen.z, expected.chosen.z) and torch.equal(noised.rejected.z, expected.rejected.z)
    assert len(kept.calls) == len(alone.calls) + 2 == 5 * 2 + 2
    assert [rows for rows, _ in kept.calls[-2:]] == [[0], [0]]


def silent() -> Told:
    """Means no noise at all: what is left beside alpha x0 is what was added at random."""
    return Told(process("eps"), lambda rows, z, t: torch.zeros_like(z))


@pytest.mark.parametrize("landing", ["exact", "released"])
def test_random_noise_by_hand(landing):
    """One step to t = 1 is a single draw, two steps to 150 (exact) are one more.

    Deviation eta sqrt((1 - abar)/(1 - abar') (1 - abar'/abar)) from abar to abar'; the exact start has no noise at
    all, hence draws only from its second step on. Draws are named by side and step.
    """
    one, rng = process("eps"), Rng(0, 0, ROWS[:1])
    exact = landing == "exact"
    t = torch.tensor([150 if exact else 1])
    noised = walk(silent(), t, steps=10, eta=0.4, landing=landing)
    here, there, step = (100, 150, 1) if exact else (0, 1, 0)
    (a, s), (a_there, s_there) = levels(one, here), levels(one, there)
    deviation = 0.4 * s / s_there * (1 - a_there**2 / a**2) ** 0.5
    start = 1 if exact else levels(one, 0)[0]
    for side, x0, name in zip(noised, LATENT, ("chosen", "rejected"), strict=True):
        draw = rng.normal(x0.shape[1:], f"inversion/{name}/{step}").double()
        torch.testing.assert_close(side.z - a_there / start * x0[:1], deviation * draw, rtol=1e-9, atol=1e-12)


def test_random_noise_depends_on_row_side_step_and_seed_alone():
    """The same row has the same draws in any batch; sides, rows and seeds differ."""
    t = torch.tensor([950, 420, 950])
    rows = torch.tensor([3, 1, 4])
    together = walk(affine("eps"), t, rows, eta=0.4)
    for i in range(3):
        alone = walk(affine("eps"), t[i : i + 1], rows[i : i + 1], eta=0.4)
        torch.testing.assert_close(alone.chosen.z, together.chosen.z[i : i + 1], rtol=1e-12, atol=1e-12)
    quiet = [walk(silent(), t, rows, eta=0.4, seed=seed) for seed in (0, 1)]
    alpha = expand(process("eps").alpha_sigma(t)[0], EPS)
    noises = [side.z - alpha * x0[rows] for run in quiet for side, x0 in zip(run, LATENT, strict=True)]
    flat = torch.cat([noise.flatten(1)[[0, 2]] for noise in noises])
    assert torch.corrcoef(flat).fill_diagonal_(0).abs().max() < 0.3, "256 elements: a deviation of 0.06"


def test_random_noise_has_its_deviation():
    """From 900 to 950 with a silent network: the last step's noise beside the damped ones before it.

    Each step's variance v_k = eta^2 (s/s')^2 (1 - abar'/abar) is damped by (alpha_end / alpha_k')^2 on the way.
    """
    one, points = process("eps"), [*range(0, 1000, 100), 950]
    variance = 0.0
    for here, there in itertools.pairwise(points[1:]):
        (a, s), (a_there, s_there) = levels(one, here), levels(one, there)
        added = 0.25 * (s / s_there) ** 2 * (1 - a_there**2 / a**2)
        variance += added * (levels(one, 950)[0] / a_there) ** 2
    noised = walk(silent(), torch.full((6,), 950), eta=0.5)
    noise = torch.cat([side.z - levels(one, 950)[0] * x0 for side, x0 in zip(noised, LATENT, strict=True)])
    assert noise.std().item() == pytest.approx(variance**0.5, rel=0.06)  # 3072 numbers: a deviation of 1.3 %


def test_released_has_no_meaning_for_flow():
    with pytest.raises(ConfigError, match="use landing=exact"):
        walk(constant("flow"), torch.tensor([0.3]), landing="released")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"renoise": -1}, "renoise is -1"),
        ({"eta": -0.1}, "must be at least 0"),
        ({"eta": float("nan")}, "finite and at least 0"),
    ],
)
def test_bad_inversions_are_refused(given, told):
    with pytest.raises(ConfigError, match=told):
        Inversion(**given)
