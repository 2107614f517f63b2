"""Check the intervals and tests of `diffpo compare` by simulation: do 95 % intervals hold the truth in 95 % of cases?

    python scripts/check_coverage.py                    2,000 simulations of 200 prompts x 4 seeds, a few minutes

    images    score = prompt's difficulty (the same for both models) + prompt's gain (one model) + noise of the seed
    users     each user has a taste, the probability to prefer the model, and judges 3 to 15 prompts

Intervals must cover between 93 and 97 %; where there is no difference, tests at 5 % must find one in 3.5 to 6.5 %.
Exits 1 if one does not. The functions are those that commands call, with fewer resamples.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import exponnorm, norm

from diffpo.compare.stats import Estimate, Resampling, mean_difference, win_rate
from diffpo.compare.users import user_win_rate

COVERAGE, LEVEL = (0.93, 0.97), (0.035, 0.065)
RESAMPLES = 599  # 30 of 600 are 5 % exactly
USERS = 40


@dataclass(frozen=True)
class Images:
    """Two models on the same prompts and seeds."""

    gain: Callable[[np.random.Generator, int], np.ndarray]
    """Draws how much each prompt gains by the model."""
    win_rate: float
    """The true one."""
    difference: float
    whole: bool = False
    """Scores are whole numbers: many ties."""

    def simulate(self, generator: np.random.Generator, prompts: int, seeds: int) -> dict[str, tuple[Estimate, float]]:
        """Draw scores, compare: what is estimated, and the truth."""
        shape = prompts, seeds
        difficulty, gain = generator.normal(size=(prompts, 1)), self.gain(generator, prompts)[:, None]
        noise = generator.normal(0, math.sqrt(0.5), size=(2, *shape))
        a, b = (difficulty + gain + noise[0]).ravel(), (difficulty + noise[1]).ravel()
        if self.whole:
            a, b = a.round(), b.round()
        names, resampling = np.repeat(np.arange(prompts), seeds).tolist(), _resampling(generator)
        return {
            "win rate": (win_rate(a, b, names, resampling=resampling), self.win_rate),
            "difference": (mean_difference(a, b, names, resampling=resampling), self.difference),
        }


@dataclass(frozen=True)
class Users:
    """People with tastes of a beta distribution."""

    alpha: float
    beta: float

    def simulate(self, generator: np.random.Generator, prompts: int, seeds: int) -> dict[str, tuple[Estimate, float]]:
        """Draw users and their choices; how many prompts each judges is drawn too."""
        tastes, sizes = generator.beta(self.alpha, self.beta, USERS), generator.integers(3, 16, USERS)
        shares = generator.random(int(sizes.sum())) < np.repeat(tastes, sizes)
        users, judged = np.repeat(np.arange(USERS), sizes).tolist(), [i for size in sizes for i in range(size)]
        found = user_win_rate(shares, judged, users, resampling=_resampling(generator))
        return {"win rate over users": (found.macro, self.alpha / (self.alpha + self.beta))}


CASES: dict[str, Images | Users] = {
    "no difference": Images(lambda rng, n: rng.normal(0, 1, n), 0.5, 0.0),
    "better": Images(lambda rng, n: rng.normal(0.4, 1, n), float(norm.cdf(0.4 / math.sqrt(2))), 0.4),
    "no difference, many ties": Images(lambda rng, n: rng.normal(0, 1, n), 0.5, 0.0, whole=True),
    "skewed gains": Images(lambda rng, n: rng.exponential(1, n) - 1, float(exponnorm.sf(1, 1)), 0.0),
    "users, no difference": Users(5, 5),
    "users, better": Users(6, 4),
}


@dataclass
class Tally:
    """What simulations of one case found."""

    runs: int = 0
    covered: int = 0
    found: int = 0
    """Tests with p of at most 5 %."""
    width: float = 0.0

    def add(self, estimate: Estimate, truth: float) -> None:
        """Count one simulation."""
        self.runs += 1
        self.covered += estimate.ci_low <= truth <= estimate.ci_high
        self.found += estimate.p_value <= 0.05
        self.width += estimate.ci_high - estimate.ci_low


def _resampling(generator: np.random.Generator) -> Resampling:
    return Resampling(resamples=RESAMPLES, seed=int(generator.integers(1 << 31)))


def simulate(name: str, simulations: int, prompts: int, seeds: int) -> dict[str, Tally]:
    """Simulate a case many times: what is estimated, and how often it came out right."""
    generator, tallies = np.random.default_rng([20, list(CASES).index(name)]), {}
    for _ in range(simulations):
        for what, (estimate, truth) in CASES[name].simulate(generator, prompts, seeds).items():
            tallies.setdefault(what, Tally()).add(estimate, truth)
    return tallies


def judge(name: str, what: str, tally: Tally) -> list[str]:
    """Print a row; return what is out of range."""
    covered, found, width = (value / tally.runs for value in (tally.covered, tally.found, tally.width))
    null = "no difference" in name
    wrong = [] if COVERAGE[0] <= covered <= COVERAGE[1] else [f"{name}, {what}: covers {covered:.1%}"]
    wrong += [] if not null or LEVEL[0] <= found <= LEVEL[1] else [f"{name}, {what}: the test's level is {found:.1%}"]
    remark = f"{'(level)' if null else '':9}{'OUT OF RANGE' if wrong else ''}"
    print(f"{name:26}{what:22}{covered:9.1%}{width:9.3f}{found:9.1%}   {remark}".rstrip(), flush=True)
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Check all cases; 0 if all is in range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=4)
    given = parser.parse_args(arguments)
    print(f"{given.simulations} simulations of {given.prompts} prompts x {given.seeds} seeds, or of {USERS} users")
    print(f"{'case':26}{'what':22}{'covered':>9}{'width':>9}{'p<=0.05':>9}")
    wrong = []
    for name in CASES:
        for what, tally in simulate(name, given.simulations, given.prompts, given.seeds).items():
            wrong += judge(name, what, tally)
    print("\n".join(wrong) if wrong else "all intervals cover 93 to 97 %, all tests keep their level of 5 %")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
