"""Inversion: how each image of a pair is walked back to the noise that would draw it.

This is a DDIM walk (arXiv:2010.02502) along a grid of times, with ReNoise's corrections (arXiv:2403.14602) if asked
for, as in InPO (arXiv:2503.18454) and SmPO (arXiv:2506.02698). Nothing is random here unless `eta` is positive.

The network is constant meanwhile, and no row needs another one. So the rows wait in a pool, each at a step of its own,
and every call of the network takes as many as fit. Those that have most left to do go first: then `invert` needs no
more calls than the longest row, or than all rows fill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from diffpo.core.block import Block, Count, NotNegative, Range, SamplingSteps
from diffpo.core.noising import Predictor
from diffpo.core.process import Landing, Level, NoiseProcess, Path, expand
from diffpo.core.types import Condition, Noised, Pair, Rng, moved, moved_to
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
    at_once: Count | None = None
    """Images that the network is asked about at once. Default: on a CPU as many as a training forward holds; on a GPU
    so many that few calls are left and all are full, up to four times as many, since none keeps its activations."""
    cache: bool = False
    """Keep the reference's inversions on disk, of the posterior's mode, with the caption and without: training costs
    no more than with random noise. With `renoise` the partial last step follows the whole step's correction."""

    @property
    def rows(self) -> float:
        """Images through the network for one pair, on average over uniform times, landing exactly."""
        return (self.steps + 1) * (1 + self.renoise)

    def choose(self, policy: Predictor, reference: Predictor | None) -> Predictor:
        """Return the network that answers."""
        if self.invert_with == "policy":
            return policy
        assert reference is not None, "needs_reference says that the reference inverts"
        return reference

    def __post_init__(self):
        super().__post_init__()
        if self.cache and (self.invert_with != "reference" or self.eta):
            raise ConfigError(
                f"inversion.cache keeps what does not change: it needs invert_with=reference and eta=0, not "
                f"invert_with={self.invert_with} and eta={self.eta}"
            )


@torch.no_grad()
def invert(
    denoiser: Predictor,
    latent: Pair[Tensor],
    cond: Pair[Condition],
    t: Tensor,
    rng: Rng,
    inversion: Inversion,
    *,
    most: int | None = None,
    least: int = 0,
) -> Pair[Noised]:
    """Walk both images of each pair to its t (InPO, arXiv:2503.18454; SmPO, arXiv:2506.02698).

    No gradient, no guidance. The rows through the network are, per image, the number of its own steps times 1 +
    renoise; idle ones come to that where a call needs `least`. The noise that belongs to z is recovered from it, eps =
    (z - alpha x0) / sigma.

    Args:
        denoiser: The network that answers.
        latent: `[b c f h w]` x0 of each side.
        cond: What it is told.
        t: `[b]`.
        rng: The draws of these rows, used if eta > 0.
        inversion: The settings.
        most: Images in a call of the network at most; None: all that have not arrived.
        least: Images in a call at least: idle ones fill it up, so that a compiled network sees one shape.

    Raises:
        ConfigError: `landing="released"` for a flow model.
    """
    process = denoiser.process
    path = process.path(t, inversion.steps, inversion.landing, latent.chosen.shape[1:])
    walk = Walk(process, latent, cond, path, inversion, rng)
    for _ in range(denoiser.lockstep(walk.calls(most))):
        walk.ask(denoiser, walk.next(most), least)
    return Pair(*(recovered(process, x0, z, t) for x0, z in zip(latent, walk.points, strict=True)))


def recovered(process: NoiseProcess, x0: Tensor, z: Tensor, t: Tensor) -> Noised:
    """Put z `[b c f h w]`, its levels at t `[b]` and the target together, from the noise that leads from x0 to z."""
    alpha, sigma = process.alpha_sigma(t)
    eps = (z - expand(alpha, z) * x0) / expand(sigma, z)
    return Noised(z, t, alpha, sigma, process.target(x0, eps, t))


@torch.no_grad()
def trajectory(denoiser: Predictor, latent: Pair[Tensor], cond: Pair[Condition], inversion: Inversion) -> Pair[Tensor]:
    """Walk both images of each pair to the end of the grid, and keep every point: `[b n c f h w]`, x0 first."""
    path = whole_path(denoiser.process, len(latent.chosen), latent.chosen.shape[1:], inversion)
    walk, points = Walk(denoiser.process, latent, cond, path, inversion), [latent]
    for call in range(1, walk.calls() + 1):
        walk.ask(denoiser, walk.next())
        if call % (1 + inversion.renoise) == 0:
            points.append(walk.points.map(torch.clone))
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


class Walk:
    """Images on their way, each at a step and a correction of its own; row b + i is the rejected image of pair i."""

    def __init__(
        self,
        process: NoiseProcess,
        latent: Pair[Tensor],
        cond: Pair[Condition],
        path: Path,
        inversion: Inversion,
        rng: Rng | None = None,
    ):
        """Stand at the beginning of a path; arguments as for `invert`, whose rng eta > 0 needs."""
        self._process, self._inversion, self._rng = process, inversion, rng
        self._told, self._pairs = Condition.stack([*cond]), len(latent.chosen)
        time, alpha, sigma = (x.repeat(1, 2) for x in (path.time, path.alpha, path.sigma))
        self._path = Path(time, alpha, sigma, path.steps.repeat(2))
        self._start = torch.cat([*latent])  # where each row's step begins
        self._asked = self._start.clone()  # where its next answer is about
        self._sum = torch.zeros_like(self._start)  # of the answers within the step
        self._step, self._answers = torch.zeros_like(self._path.steps), torch.zeros_like(self._path.steps)

    @property
    def points(self) -> Pair[Tensor]:
        """`[b c f h w]` of each side: the last points reached."""
        return Pair(*self._start.chunk(2))

    @property
    def left(self) -> Tensor:
        """`[2 b]` answers that each row still needs."""
        return (self._path.steps - self._step) * (1 + self._inversion.renoise) - self._answers

    def calls(self, most: int | None = None) -> int:
        """Calls of the network, about so many rows each at most, until all have arrived: those that `next` leads to."""
        left = self.left
        return max(int(left.max()), 0 if most is None else -(-int(left.sum()) // most))

    def next(self, most: int | None = None) -> Tensor:
        """Choose the rows that have most left to do, so many at most, in their order; none if all have arrived."""
        left = self.left
        return left.argsort(descending=True, stable=True)[: min(int((left > 0).sum()), most or len(left))].sort().values

    def ask(self, denoiser: Predictor, rows: Tensor, least: int = 0) -> None:
        """Ask once about some rows and let each go on; idle ones fill a call up to `least`, which is 1 at least."""
        process, path = self._process, self._path
        idle = (rows if len(rows) else torch.tensor([0]))[:1].expand(max(0, max(least, 1) - len(rows)))
        asked = torch.cat([rows, idle])
        step = self._step[asked].minimum(path.steps[asked] - 1)  # an idle row may have arrived
        here, there = ((path.alpha[i, asked], path.sigma[i, asked]) for i in (step, step + 1))
        time, level = path.time[step, asked], here
        if self._inversion.landing == "exact":
            # A correction is told the time of the point reached; as released, that of the old one. An answer is taken
            # apart at the level that the network was told, which at t = 0 is not quite clean.
            time = torch.where(self._answers[asked] > 0, path.time[step + 1, asked], time)
            level = process.alpha_sigma(time)
        picked = moved(asked, self._start.device)  # the CPU knows who is where, and never waits for the device
        x, side, pair = self._asked[picked], picked // self._pairs, picked % self._pairs
        answer = denoiser.predict(x, time, self._told.map(lambda states: states[side, pair])).to(x)
        slope, n = process.slope(answer, x, level), len(rows)
        self._go_on(rows, slope[:n], *((alpha[:n], sigma[:n]) for alpha, sigma in (here, there)))

    def _go_on(self, rows: Tensor, slope: Tensor, here: Level, there: Level) -> None:
        """Follow the answers to the next point: to be asked about again, or for good along the mean of a step's."""
        answers, picked = self._answers[rows] + 1, moved(rows, slope.device)
        full = answers == 1 + self._inversion.renoise
        done = moved(full, slope.device).reshape(-1, *[1] * (slope.ndim - 1))
        start, total = self._start[picked], self._sum[picked] + slope
        along = torch.where(done, total / (1 + self._inversion.renoise), slope)
        reached = self._process.move(start, along, here, there)
        if self._inversion.eta:
            reached = self._disturb(reached, rows, full, here, there)
        self._asked.index_copy_(0, picked, reached)
        self._start.index_copy_(0, picked, torch.where(done, reached, start))
        self._sum.index_copy_(0, picked, total.masked_fill(done, 0))
        self._answers[rows], self._step[rows] = answers * ~full, self._step[rows] + full

    def _disturb(self, z: Tensor, rows: Tensor, full: Tensor, here: Level, there: Level) -> Tensor:
        """Add eta times the deviation of q(z here | z there, x0) where a step is full, drawn for each row by itself."""
        assert self._rng is not None, "eta > 0 draws"
        (alpha, sigma), (alpha_there, sigma_there) = here, there
        variance = (sigma / sigma_there).square() * (sigma_there.square() - (alpha_there / alpha * sigma).square())
        scale, noise = self._inversion.eta * variance.clamp(min=0).sqrt(), torch.zeros(z.shape)
        for place in full.nonzero().flatten().tolist():
            side, pair = divmod(int(rows[place]), self._pairs)
            rng = Rng(self._rng.seed, self._rng.epoch, self._rng.index[pair : pair + 1])
            purpose = f"inversion/{('chosen', 'rejected')[side]}/{int(self._step[rows[place]])}"
            noise[place] = rng.normal(z.shape[1:], purpose)[0]
        return z + expand(scale, z) * moved_to(noise, z)
