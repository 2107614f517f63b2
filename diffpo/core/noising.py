"""How the two clean latents of a pair become noisy ones: by random noise. `inversion` has the other way."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from diffpo.core.process import NoiseProcess
from diffpo.core.types import Condition, Noised, Pair, Rng, moved_to

NoiseSharing = Literal["shared", "independent"]
"""Whether the two sides of a pair get the same random noise."""


class Predictor(Protocol):
    """What a method and the step may ask of a denoiser."""

    @property
    def process(self) -> NoiseProcess:
        """Schedule and parametrisation."""
        ...

    def predict(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Answer `[b c f h w]` to z `[b c f h w]` at t `[b]`, in the process's own parametrisation."""
        ...

    def lockstep(self, n: int) -> int:
        """Return the largest n over the processes that must call the network equally often, or n where none must."""
        ...


def random_noise(
    process: NoiseProcess, latent: Pair[Tensor], t: Tensor, rng: Rng, noise: NoiseSharing = "shared"
) -> Pair[Noised]:
    """Add Gaussian noise to both sides, at the same time.

    The noise is the *same* for both sides unless it is asked to be independent (Diffusion-DPO, arXiv:2311.12908: eq. 14
    writes independent noises; the authors' code shares one, which lowers the variance of the margin). `latent` is
    `[b c f h w]` x0 of each side, or None where the method does not use it (with shared noise only); `t` is `[b]`, one
    per pair.
    """
    shape = next(x for x in latent if x is not None).shape[1:]
    if noise == "shared":
        eps = rng.normal(shape, "noise")
        return latent.map(lambda x0: noised_at(process, x0, moved_to(eps, x0), t))
    sides = zip(("chosen", "rejected"), latent, strict=True)
    return Pair(*(noised_at(process, x0, moved_to(rng.normal(shape, f"noise/{side}"), x0), t) for side, x0 in sides))


def noised_at(process: NoiseProcess, x0: Tensor, eps: Tensor, t: Tensor) -> Noised:
    """Put z, its levels and its target together for known x0 and eps `[b c f h w]` at time t `[b]`."""
    alpha, sigma = process.alpha_sigma(t)
    return Noised(process.mix(x0, eps, t), t, alpha, sigma, process.target(x0, eps, t))
