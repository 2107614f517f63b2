"""The noise process: how data becomes noise, and what a network predicts. eps, v and flow live here only.

    z = alpha x0 + sigma eps                      x0 is data, eps standard normal noise
    prediction = p x0 + q eps                     (p, q) = (0, 1) eps | (-sigma, alpha) v | (-1, 1) flow

Both lines are linear in (x0, eps), so one 2x2 solve takes any prediction apart again. The schedule (alpha, sigma as
functions of t) is a discrete table (DDPM, arXiv:2006.11239; v: arXiv:2202.00512), the straight line of rectified flow
(arXiv:2209.03003; logit-normal times and the shift: arXiv:2403.03206), or any function whose squares sum to one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from diffpo.core.block import Block, Finite, Fraction, Positive
from diffpo.core.types import Rng, moved_to
from diffpo.errors import ConfigError

Prediction = Literal["eps", "v", "flow"]
Landing = Literal["exact", "released"]
Level = tuple[Tensor, Tensor]
"""Signal and noise level, alpha and sigma, `[b]` each."""


@dataclass(frozen=True, kw_only=True)
class Time(Block):
    """How training times are drawn. Every field left out keeps the model's own."""

    density: Literal["uniform", "logit_normal"] | None = None
    """Density of the relative time in (0, 1). Default: uniform for discrete models, logit-normal for flow."""
    mean: Finite = 0.0
    """Mean of the logit, for the logit-normal density."""
    std: Positive = 1.0
    """Standard deviation of the logit."""
    shift: Positive | None = None
    """Flow only: t becomes shift t / (1 + (shift - 1) t). Default: the model's scheduler."""
    low: Fraction = 0.0
    """Least relative time."""
    high: Fraction = 1.0
    """Largest relative time."""

    def __post_init__(self):
        super().__post_init__()
        if not self.low < self.high:
            raise ConfigError(f"time range is [{self.low}, {self.high}]; it needs 0 <= low < high <= 1")


def draw(time: Time, uniform: Tensor, density: str) -> Tensor:
    """Turn uniform numbers `[b]` in [0, 1) into relative times `[b]`: the inverse of the distribution function."""
    if density == "logit_normal":
        tiny = torch.finfo(uniform.dtype).eps
        uniform = torch.sigmoid(time.mean + time.std * torch.special.ndtri(uniform.clamp(tiny, 1 - tiny)))
    return time.low + (time.high - time.low) * uniform


def expand(x: Tensor, like: Tensor) -> Tensor:
    """Shape `[b]` as `[b 1 ... 1]`, with the device and dtype of `like` `[b ...]`."""
    return moved_to(x, like).reshape(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class Path:
    """The points that an inversion visits between the clean latent and t, `[n + 1, b]` each; point 0 is clean.

    A row with fewer than n steps stays at its last point.
    """

    time: Tensor
    """What the network is told."""
    alpha: Tensor
    """Signal level, float64."""
    sigma: Tensor
    """Noise level, float64."""
    steps: Tensor
    """`[b]` steps of each row."""


@dataclass(frozen=True, kw_only=True)
class NoiseProcess(ABC):
    """A schedule and a parametrisation."""

    prediction: Prediction
    time: Time = field(default_factory=Time)

    @abstractmethod
    def alpha_sigma(self, t: Tensor) -> Level:
        """Signal and noise level at time t `[b]`, in float64."""

    @abstractmethod
    def sample_time(self, rng: Rng, shape: Sequence[int]) -> Tensor:
        """Draw one training time for each row of `rng`, `[b]` on the CPU.

        `shape` is `[c f h w]` of the latents: some flow models shift their times the further, the larger an image is.
        """

    def relative(self, t: Tensor) -> Tensor:
        """Time as a fraction of the whole range, `[b]` in [0, 1]: what logs group by."""
        return t

    @property
    def end(self) -> Tensor:
        """The last time, a scalar: 1, unless times are counted."""
        return torch.tensor(1.0, dtype=torch.float64)

    @abstractmethod
    def path(self, t: Tensor, steps: int, landing: Landing, shape: Sequence[int]) -> Path:
        """Plan an inversion to the times t `[b]` along a grid of `steps` steps over the whole range.

        Args:
            t: `[b]` times.
            steps: Steps that the whole range takes; a row takes those below its t.
            landing: `exact`: start at alpha = 1, with a last, partial step onto t. `released`: what InPO's and SmPO's
                code does on diffusers 0.20, whose last step ends on the grid, at t or up to a whole step beyond.
            shape: `[c f h w]` of the latents, as for `sample_time`.

        Raises:
            ConfigError: `released` has no meaning here.
        """

    @abstractmethod
    def slope(self, prediction: Tensor, z: Tensor, level: Level) -> Tensor:
        """What an inversion follows and may average: eps for discrete models, the velocity for flow; `[b ...]`.

        Arguments as for `split`.
        """

    @abstractmethod
    def move(self, z: Tensor, slope: Tensor, here: Level, there: Level) -> Tensor:
        """Follow a slope `[b ...]` from z's noise level to another: a DDIM step (arXiv:2010.02502, eq. 12)."""

    @abstractmethod
    def slope_between(self, z: Tensor, z_there: Tensor, here: Level, there: Level) -> Tensor:
        """Return the slope along which `move` goes from z to z_there: its inverse."""

    def mix(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Z = alpha x0 + sigma eps, `[b ...]`."""
        alpha, sigma = (expand(x, x0) for x in self.alpha_sigma(t))
        return alpha * x0 + sigma * eps

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What a perfect network predicts, `[b ...]`."""
        alpha, sigma = (expand(x, x0) for x in self.alpha_sigma(t))
        p, q = self._weights(alpha, sigma)
        return p * x0 + q * eps

    def split(self, prediction: Tensor, z: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Take the answer to z `[b ...]`, whose level is given, apart into the (x0, eps) that it implies, `[b ...]`."""
        alpha, sigma = (expand(x, z) for x in level)
        p, q = self._weights(alpha, sigma)
        determinant = alpha * q - sigma * p  # eps: alpha; v: alpha^2 + sigma^2 = 1; flow: alpha + sigma = 1
        return (q * z - sigma * prediction) / determinant, (alpha * prediction - p * z) / determinant

    def _weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
        return {"eps": (zero, one), "v": (-sigma, alpha), "flow": (-one, one)}[self.prediction]


@dataclass(frozen=True, kw_only=True)
class VariancePreserving(NoiseProcess):
    """Models whose alpha^2 + sigma^2 is 1: an inversion follows eps, by DDIM's steps."""

    def slope(self, prediction: Tensor, z: Tensor, level: Level) -> Tensor:
        return self.split(prediction, z, level)[1]

    def move(self, z: Tensor, slope: Tensor, here: Level, there: Level) -> Tensor:
        (alpha, sigma), (alpha_there, sigma_there) = ((expand(x, z) for x in level) for level in (here, there))
        return alpha_there * (z - sigma * slope) / alpha + sigma_there * slope

    def slope_between(self, z: Tensor, z_there: Tensor, here: Level, there: Level) -> Tensor:
        (alpha, sigma), (alpha_there, sigma_there) = ((expand(x, z) for x in level) for level in (here, there))
        return (z_there - alpha_there / alpha * z) / (sigma_there - alpha_there / alpha * sigma)


@dataclass(frozen=True, kw_only=True, eq=False)
class DiscreteProcess(VariancePreserving):
    """A table of cumulative alphas; t is an integer 0 .. T-1."""

    alphas_cumprod: Tensor
    """`[T]` the scheduler's own float32 values; the square root is taken in float64, after the cast."""
    offset: int = 1
    """The scheduler's `steps_offset`: where the released inversion's grid begins."""
    clean_abar: float | None = None
    """Cumulative alpha that the released inversion gives the clean latent. None: that of t = 0 (Stable Diffusion)."""

    def alpha_sigma(self, t: Tensor) -> Level:
        abar = self.alphas_cumprod.double()[t.long().cpu()]
        return abar.sqrt(), (1 - abar).sqrt()

    def sample_time(self, rng: Rng, shape: Sequence[int]) -> Tensor:
        relative = draw(self.time, rng.uniform("time"), self.time.density or "uniform")
        steps = len(self.alphas_cumprod)
        return (relative * steps).long().clamp(max=steps - 1)  # the sigmoid of a large logit rounds to one

    def relative(self, t: Tensor) -> Tensor:
        return t / len(self.alphas_cumprod)

    @property
    def end(self) -> Tensor:
        return torch.tensor(len(self.alphas_cumprod) - 1)

    def path(self, t: Tensor, steps: int, landing: Landing, shape: Sequence[int]) -> Path:
        count = len(self.alphas_cumprod)
        if landing == "released":  # origins such as -99, 1, 101, ..., 801; the network is told the origin
            grid = self.offset + (count // steps) * torch.arange(-1, steps)
        else:
            grid = torch.arange(steps + 1) * count // steps
        n, time = _walk(grid, t.long().cpu(), landing)
        alpha, sigma = self.alpha_sigma(time.clamp(0, count - 1))
        if landing == "exact":
            alpha[0], sigma[0] = 1.0, 0.0
        elif self.clean_abar is not None:
            alpha[0], sigma[0] = self.clean_abar**0.5, (1 - self.clean_abar) ** 0.5
        return Path(time, alpha, sigma, n)


@dataclass(frozen=True, kw_only=True)
class ContinuousProcess(VariancePreserving):
    """A schedule over the whole range; t is its fraction, in [0, 1]."""

    alpha: Callable[[Tensor], Tensor]
    """The signal level at times `[...]`, in their dtype."""

    def alpha_sigma(self, t: Tensor) -> Level:
        alpha = self.alpha(t.double().cpu())
        return alpha, (1 - alpha.square()).sqrt()

    def sample_time(self, rng: Rng, shape: Sequence[int]) -> Tensor:
        return draw(self.time, rng.uniform("time"), self.time.density or "uniform")

    def path(self, t: Tensor, steps: int, landing: Landing, shape: Sequence[int]) -> Path:
        _refuse_released(landing)
        n, time = _walk(torch.arange(steps + 1, dtype=torch.float64) / steps, t.double().cpu(), landing)
        alpha, sigma = self.alpha_sigma(time)
        alpha[0], sigma[0] = 1.0, 0.0
        return Path(time, alpha, sigma, n)


@dataclass(frozen=True, kw_only=True)
class FlowProcess(NoiseProcess):
    """The straight line from data (t = 0) to noise (t = 1): alpha = 1 - t, sigma = t."""

    prediction: Prediction = "flow"
    shift: Positive | Callable[[Sequence[int]], float] = 1.0
    """The model's own shift towards noise: a number, or a function of the latents' shape `[c f h w]`."""

    def alpha_sigma(self, t: Tensor) -> Level:
        sigma = t.double().cpu()
        return 1 - sigma, sigma

    def sample_time(self, rng: Rng, shape: Sequence[int]) -> Tensor:
        return self._shifted(draw(self.time, rng.uniform("time"), self.time.density or "logit_normal"), shape)

    def path(self, t: Tensor, steps: int, landing: Landing, shape: Sequence[int]) -> Path:
        _refuse_released(landing)
        grid = self._shifted(torch.arange(steps + 1, dtype=torch.float64) / steps, shape)  # even before the shift
        n, time = _walk(grid, t.double().cpu(), landing)
        return Path(time, 1 - time, time, n)

    def slope(self, prediction: Tensor, z: Tensor, level: Level) -> Tensor:
        return prediction

    def move(self, z: Tensor, slope: Tensor, here: Level, there: Level) -> Tensor:
        return z + expand(there[1] - here[1], z) * slope

    def slope_between(self, z: Tensor, z_there: Tensor, here: Level, there: Level) -> Tensor:
        return (z_there - z) / expand(there[1] - here[1], z)

    def _shifted(self, t: Tensor, shape: Sequence[int]) -> Tensor:
        own = self.shift(shape) if callable(self.shift) else self.shift
        shift = own if self.time.shift is None else self.time.shift
        return shift * t / (1 + (shift - 1) * t)


def _refuse_released(landing: Landing) -> None:
    if landing == "released":
        raise ConfigError("landing=released is what the authors' code does to discrete models: use landing=exact here")


def _walk(grid: Tensor, t: Tensor, landing: Landing) -> tuple[Tensor, Tensor]:
    """Take each row along the grid's points below its t, at least one; then onto t (exact), or to the next point.

    Returns:
        Steps `[b]`, and the points `[max steps + 1, b]`.
    """
    n = (grid[:-1, None] < t).sum(0).clamp(min=1)
    points = torch.arange(int(n.max()) + 1)[:, None].minimum(n)  # [n + 1, b] indices into the grid
    time = grid[points]
    return n, torch.where(points < n, time, t) if landing == "exact" else time
