"""Random noise, shared by a pair or not."""

from __future__ import annotations

import pytest
import torch

from diffpo.core.noising import noised_at, random_noise
from diffpo.core.process import DiscreteProcess, FlowProcess
from diffpo.core.types import Pair, Rng

TABLE = torch.linspace(0.999, 0.005, 1000)
PROCESSES = {
    "eps": DiscreteProcess(prediction="eps", alphas_cumprod=TABLE),
    "v": DiscreteProcess(prediction="v", alphas_cumprod=TABLE),
    "flow": FlowProcess(shift=3.0),
}
RNG = Rng(0, 0, torch.tensor([4, 1, 7]))


def latents() -> Pair[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return Pair(*(torch.randn(3, 4, 2, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2)))


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_both_sides_get_the_same_noise_at_the_same_time(process):
    latent, t = latents(), process.sample_time(RNG, (4, 2, 8, 8))
    noised = random_noise(process, latent, t, RNG)
    noise = []
    for side, x0 in zip(noised, latent, strict=True):
        assert side.t is t
        recovered, eps = process.split(side.target, side.z, (side.alpha, side.sigma))
        torch.testing.assert_close(recovered, x0, rtol=1e-9, atol=1e-9)
        noise.append(eps)
    torch.testing.assert_close(noise[0], noise[1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(noise[0], RNG.normal((4, 2, 8, 8), "noise").double(), rtol=1e-9, atol=1e-9)
    assert not torch.equal(noised.chosen.z, noised.rejected.z), "the images differ, so what is noised does"


def test_independent_noises_are_two():
    """Drawn for each side by its name: exchanging the images exchanges nothing else."""
    process, latent = PROCESSES["flow"], latents()
    t = process.sample_time(RNG, (4, 2, 8, 8))
    noised = random_noise(process, latent, t, RNG, "independent")
    eps = [process.split(side.target, side.z, (side.alpha, side.sigma))[1] for side in noised]
    for which, found in zip(("chosen", "rejected"), eps, strict=True):
        torch.testing.assert_close(found, RNG.normal((4, 2, 8, 8), f"noise/{which}").double(), rtol=1e-9, atol=1e-9)
    assert abs(torch.corrcoef(torch.stack([x.flatten() for x in eps]))[0, 1]) < 0.1
    assert noised.chosen.t is noised.rejected.t is t


def test_rows_have_noise_of_their_own():
    process = PROCESSES["eps"]
    equal = torch.zeros(3, 4, 1, 8, 8, dtype=torch.float64)
    z = random_noise(process, Pair(equal, equal), torch.full((3,), 500), RNG).chosen.z
    assert not torch.equal(z[0], z[1]) and not torch.equal(z[1], z[2])
    assert z.flatten(1).std(1).tolist() == pytest.approx([(1 - TABLE[500].item()) ** 0.5] * 3, rel=0.15)


@pytest.mark.parametrize("missing", ["chosen", "rejected"])
def test_a_side_that_is_not_there_is_not_noised(missing):
    """The other side is the same to the bit as with both."""
    process, t = PROCESSES["flow"], PROCESSES["flow"].sample_time(RNG, (4, 2, 8, 8))
    both = random_noise(process, latents(), t, RNG)
    sides = {"chosen": latents().chosen, "rejected": latents().rejected, missing: None}
    one = random_noise(process, Pair(**sides), t, RNG)
    present = "rejected" if missing == "chosen" else "chosen"
    assert getattr(one, missing) is None
    assert torch.equal(getattr(one, present).z, getattr(both, present).z)


def test_noise_has_the_dtype_of_the_latents():
    single = random_noise(PROCESSES["eps"], latents().map(lambda x: x.float()), torch.tensor([1, 2, 3]), RNG)
    assert single.chosen.z.dtype == single.rejected.target.dtype == torch.float32


def test_noised_by_hand():
    """Flow at t = 0.25 of x0 = 4, eps = 8: z = 0.75 * 4 + 0.25 * 8 = 5; target eps - x0 = 4."""
    x0 = torch.full((1, 1, 1, 1, 1), 4.0, dtype=torch.float64)
    noised = noised_at(FlowProcess(), x0, 2 * x0, torch.tensor([0.25], dtype=torch.float64))
    assert (noised.z.item(), noised.target.item()) == (5.0, 4.0)
    assert (noised.alpha.item(), noised.sigma.item()) == (0.75, 0.25)
