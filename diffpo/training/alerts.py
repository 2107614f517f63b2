"""What a look at the curves would tell: signs that a run goes wrong, each said once."""

import math
from collections import deque
from collections.abc import Iterator, Mapping

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


class Alerts:
    """Looks at the metrics of every update.

    `least_norm` is the norm of a gradient that is everywhere as large as the optimizer's epsilon; 0 if it has none.
    """

    def __init__(self, least_norm: float = 0.0) -> None:
        self._least_norm = least_norm
        self._seen: deque[Mapping[str, float]] = deque(maxlen=2 * WINDOW)
        self._said: set[str] = set()

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
