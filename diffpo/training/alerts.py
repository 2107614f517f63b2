"""What a look at the curves would tell: signs that a run goes wrong, each said once."""

import math
from collections import deque
from collections.abc import Iterator, Mapping

from diffpo.config.run import Config
from diffpo.core.types import PairBatch

WINDOW = 25
"""Updates whose mean is looked at."""
EARLY = 100
"""Updates within which an accuracy near 1 is too good to be true."""
NEAR_ONE = 0.97
"""Mean accuracy that counts as near 1."""
RISE = 0.02
"""Share by which the chosen error must exceed the reference's."""

ACCURATE = (
    "the accuracy is {accuracy:.2f} on average after only {step} updates: the pairs are easy to tell apart, or the "
    "learning rate is high. More updates may only make the images worse: look at the samples, and compare with a lower "
    "train.learning_rate"
)
RISING = (
    "the margin grows while the error on the chosen images rises, too ({chosen:.4g}; the reference's is "
    "{reference:.4g}): the model forgets the rejected images faster than it learns the chosen ones. Look at the "
    "samples; a lower train.learning_rate or fewer train.steps help, as does method.sft_weight in a new run"
)
EMPTY = (
    "update {step} had nothing to learn from: no row of it has a term, since all of its labels are ties. It counted as "
    "a loss of zero"
)
SMALL = (
    "the gradients are smaller than train.adam_epsilon (their norm is {norm:.2g}; epsilon everywhere would have "
    "{least:.2g}): the optimizer hardly moves. Set train.adam_epsilon=1e-15 in a new run; ipo at its default beta, for "
    "one, needs that"
)


ROUNDED = (
    "train.mixed_precision={precision} alone moves the logit u by about {rounding:.1f}, at a beta of {beta:g} and "
    "{numbers:,} numbers in a latent: single pairs are judged by rounding (docs/speed.md). Set "
    "train.mixed_precision=no, or fp16, which rounds a tenth as much as bf16, or lower method.beta in a new run"
)
ROUNDING = {"no": 2e-6, "fp16": 1e-3, "bf16": 1.1e-2}
"""How far rounding moves u, times the root of the numbers in a latent, at a beta of 1: `scripts/rounding.py`."""
SWAMPED = 1.0
"""Rounding of u that is said."""


def judged_with(config: Config, batch: PairBatch) -> tuple[str, float, int]:
    """The precision, the beta of a method that has one, and how many numbers of a latent a term is a mean over."""
    method = config.method
    beta = getattr(method, "beta", 0.0)
    _, frames, *_ = batch.shape
    return config.train.mixed_precision, beta, batch.shape.numel() // (frames if method.reads_segments else 1)


def rounding_of(precision: str, beta: float, numbers: int) -> float:
    """How far rounding moves the logit: it grows with beta, and averages out over the numbers in a latent."""
    return ROUNDING[precision] * beta / math.sqrt(numbers)


class Alerts:
    """Looks at the metrics of every update.

    `least_norm` is the norm of a gradient that is everywhere as large as the optimizer's epsilon; 0 if it has none.
    """

    def __init__(self, least_norm: float = 0.0) -> None:
        self._least_norm = least_norm
        self._seen: deque[Mapping[str, float]] = deque(maxlen=2 * WINDOW)
        self._said: set[str] = set()

    def begin(self, precision: str, beta: float, numbers: int) -> Iterator[str]:
        """Look at the settings and the size of the latents, and yield what there is to say, once."""
        rounding = rounding_of(precision, beta, numbers)
        if rounding > SWAMPED and ROUNDED not in self._said:
            self._said.add(ROUNDED)
            yield ROUNDED.format(precision=precision, rounding=rounding, beta=beta, numbers=numbers)

    def look(self, step: int, metrics: Mapping[str, float]) -> Iterator[str]:
        """Take in an update's metrics, and yield what has not been said yet."""
        self._seen.append(metrics)
        last, before = list(self._seen)[-WINDOW:], list(self._seen)[:-WINDOW]
        accuracy, margin = _mean("rewards/accuracies", last), _mean("rewards/margins", last)
        chosen, reference = _mean("error/chosen", last), _mean("error/reference_chosen", last)
        norm, least = metrics.get("grad_norm", 0.0), self._least_norm
        grows = margin > 0 and margin > _mean("rewards/margins", before)
        signs = {
            EMPTY: metrics.get("terms") == 0,
            SMALL: 0 < norm < least,
            ACCURATE: accuracy >= NEAR_ONE and step <= EARLY,
            RISING: grows and chosen > (1 + RISE) * reference,
        }
        values = {"step": step, "accuracy": accuracy, "chosen": chosen, "reference": reference}
        for text in [text for text, seen in signs.items() if seen and text not in self._said]:
            self._said.add(text)
            yield text.format(norm=norm, least=least, **values)


def _mean(name: str, window: list[Mapping[str, float]]) -> float:
    """Average a metric; NaN, of which no sign is made, where there are too few updates or one has no such metric."""
    return sum(metrics.get(name, math.nan) for metrics in window) / WINDOW if len(window) == WINDOW else math.nan
