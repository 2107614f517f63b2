"""Inversion: how each image of a pair is walked back to the noise that would draw it.

This is a DDIM walk (arXiv:2010.02502) along a grid of times, with ReNoise's corrections (arXiv:2403.14602) if asked
for, as in InPO (arXiv:2503.18454) and SmPO (arXiv:2506.02698). Nothing is random here unless `eta` is positive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from diffpo.core.block import Block, NotNegative, Range, SamplingSteps
from diffpo.core.noising import Predictor
from diffpo.core.process import Landing, NoiseProcess, Path, expand
from diffpo.core.types import Condition, Noised, Pair, Rng
from diffpo.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inversion(Block):
    """How an image is walked back to the noise that would draw it. Every pair stops at its own t."""

    steps: SamplingSteps = 10
    """Steps over the whole range of times; a pair takes those below its t, on average (steps + 1) / 2."""
    renoise: Annotated[int, Range(least=0, most=1000)] = 0
    """Corrections per step: ask again at the point reached, and go from the old point along the mean of the answers."""
    eta: NotNegative = 0.0
    """Random noise added after each step, in units of DDIM's posterior deviation. InPO's released code has 0.1."""
    landing: Landing = "exact"
    """`exact` lands on t; `released` ends on the grid and calls it t, as the code of InPO and SmPO does."""
    invert_with: Literal["policy", "reference"] = "policy"
    """Which network answers. The policy's own drifts while it learns, as released."""
    cache: bool = False
    """Keep the reference's inversions on disk, of the posterior's mode, with the caption and without: training costs
    no more than with random noise. With `renoise` the partial last step follows the whole step's correction."""

    @property
    def rows(self) -> float:
        """Images through the network for one pair, on average over uniform times, landing exactly."""
        return (self.steps + 1) * (1 + self.renoise)

    def __post_init__(self):
        super().__post_init__()
        if self.cache and (self.invert_with != "reference" or self.eta):
            raise ConfigError(
                f"inversion.cache keeps what does not change: it needs invert_with=reference and eta=0, not "
                f"invert_with={self.invert_with} and eta={self.eta}"
            )


@torch.no_grad()
def invert(
    denoiser: Predictor, latent: Pair[Tensor], cond: Pair[Condition], t: Tensor, rng: Rng, inversion: Inversion
) -> Pair[Noised]:
    """Walk both images of each pair to its t (InPO, arXiv:2503.18454; SmPO, arXiv:2506.02698).

    No gradient, no guidance. A forward holds only the pairs that have not arrived: the rows through the network are,
    per image, the number of its own steps times 1 + renoise. The noise that belongs to z is recovered from it, eps =
    (z - alpha x0) / sigma. `latent` is `[b c f h w]` x0 of each side, `t` is `[b]`, and `rng` is used if eta > 0.

    Raises:
        ConfigError: `landing="released"` for a flow model.
    """
    process = denoiser.process
    path = process.path(t, inversion.steps, inversion.landing, latent.chosen.shape[1:])
    z = latent
    for k in range(denoiser.lockstep(int(path.steps.max()))):
        rows = torch.nonzero(path.steps > k).flatten()
        if not len(rows):  # other processes have steps left: keep them company, and throw the answer away
            _step(denoiser, z, cond, torch.tensor([0]), path, 0, inversion)
            continue
        reached = _step(denoiser, z, cond, rows, path, k, inversion)
        if inversion.eta:
            reached = _disturb(reached, rows, path, k, inversion.eta, rng)
        z = Pair(*(old.index_copy(0, rows.to(old.device), new) for old, new in zip(z, reached, strict=True)))
    return Pair(*(recovered(process, x0, x, t) for x0, x in zip(latent, z, strict=True)))


def recovered(process: NoiseProcess, x0: Tensor, z: Tensor, t: Tensor) -> Noised:
    """Put z `[b c f h w]`, its levels at t `[b]` and the target together, from the noise that leads from x0 to z."""
    alpha, sigma = process.alpha_sigma(t)
    eps = (z - expand(alpha, z) * x0) / expand(sigma, z)
    return Noised(z, t, alpha, sigma, process.target(x0, eps, t))


@torch.no_grad()
def trajectory(denoiser: Predictor, latent: Pair[Tensor], cond: Pair[Condition], inversion: Inversion) -> Pair[Tensor]:
    """Walk both images of each pair to the end of the grid, and keep every point: `[b n c f h w]`, x0 first."""
    rows = torch.arange(len(latent.chosen))
    path = whole_path(denoiser.process, len(rows), latent.chosen.shape[1:], inversion)
    points = [latent]
    for k in range(int(path.steps.max())):
        points.append(_step(denoiser, points[-1], cond, rows, path, k, inversion))
    return Pair(*(torch.stack(side, dim=1) for side in zip(*points, strict=True)))


def follow(process: NoiseProcess, kept: Pair[Tensor], t: Tensor, inversion: Inversion) -> Pair[Noised]:
    """Find the points at t `[b]` on trajectories that `trajectory` made: what `invert` gives, without a network."""
    rows, shape = torch.arange(len(t)), kept.chosen.shape[2:]
    n = process.path(t, inversion.steps, inversion.landing, shape).steps
    grid = whole_path(process, len(t), shape, inversion)
    here, there = ((grid.alpha[k, rows], grid.sigma[k, rows]) for k in (n - 1, n))

    def find(points: Tensor) -> Noised:
        before, after = (points[rows, k] for k in (n - 1, n))
        if inversion.landing == "exact":
            slope = process.slope_between(before, after, here, there)
            after = process.move(before, slope, here, process.alpha_sigma(t))
        return recovered(process, points[:, 0], after, t)

    return kept.map(find)


def whole_path(process: NoiseProcess, rows: int, shape: Sequence[int], inversion: Inversion) -> Path:
    """Plan for every row an inversion to the end of the grid."""
    return process.path(process.end.expand(rows), inversion.steps, inversion.landing, shape)


def _step(
    denoiser: Predictor, z: Pair[Tensor], cond: Pair[Condition], rows: Tensor, path: Path, k: int, inversion: Inversion
) -> Pair[Tensor]:
    """Take step k with some rows of both sides in one forward; returns those rows."""
    picked = rows.to(z.chosen.device)
    told = Condition.cat([side.map(lambda x: x[picked]) for side in cond])
    start = torch.cat([side[picked] for side in z])
    time, time_there = (path.time[i, rows].repeat(2) for i in (k, k + 1))
    here, there = ((path.alpha[i, rows].repeat(2), path.sigma[i, rows].repeat(2)) for i in (k, k + 1))
    process, x, slopes = denoiser.process, start, []
    for _ in range(1 + inversion.renoise):
        # An answer is taken apart at the level that the network was told, which at t = 0 is not quite clean.
        level = process.alpha_sigma(time) if inversion.landing == "exact" else here
        slopes.append(process.slope(denoiser.predict(x, time, told).to(x), x, level))
        x = process.move(start, slopes[-1], here, there)
        if inversion.landing == "exact":  # the network is told the time of the point reached; as released, the old one
            time = time_there
    return Pair(*process.move(start, torch.stack(slopes).mean(0), here, there).chunk(2))


def _disturb(z: Pair[Tensor], rows: Tensor, path: Path, k: int, eta: NotNegative, rng: Rng) -> Pair[Tensor]:
    """Add eta times the deviation of q(z here | z there, x0) after step k, drawn for each side by itself."""
    (alpha, sigma), (alpha_there, sigma_there) = ((path.alpha[i, rows], path.sigma[i, rows]) for i in (k, k + 1))
    variance = (sigma / sigma_there).square() * (sigma_there.square() - (alpha_there / alpha * sigma).square())
    scale = eta * variance.clamp(min=0).sqrt()

    def add(x: Tensor, side: str) -> Tensor:
        return x + expand(scale, x) * rng.normal(x.shape[1:], f"inversion/{side}/{k}")[rows].to(x)

    return Pair(add(z.chosen, "chosen"), add(z.rejected, "rejected"))
