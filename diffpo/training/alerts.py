"""What a look at the curves would tell: signs that a run goes wrong, each said once."""

from __future__ import annotations

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
    """Looks at the metrics of every update."""

    def __init__(self, least_norm: float = 0.0) -> None:
        """Begin with nothing seen and nothing said.

        Args:
            least_norm: Norm of a gradient that is everywhere as large as the optimizer's epsilon; 0 if it has none.
        """
        self._least_norm = least_norm
        self._seen: deque[Mapping[str, float]] = deque(maxlen=2 * WINDOW)
        self._said: set[str] = set()

    def look(self, step: int, metrics: Mapping[str, float]) -> Iterator[str]:
        """Take in an update's metrics, and yield what has not been said yet."""
        self._seen.append(metrics)
        empty = EMPTY.format(step=step) if metrics.get("terms") == 0 else None
        looked = {
            "empty": empty,
            "small": self._small(metrics.get("grad_norm", 0.0)),
            "accurate": self._accurate(step),
            "rising": self._rising(),
        }
        for kind, text in looked.items():
            if text is not None and kind not in self._said:
                self._said.add(kind)
                yield text

    def _mean(self, name: str, *, before: bool = False) -> float | None:
        """Average the last updates, or those before them; None where there are too few or none has this metric."""
        seen = list(self._seen)
        window = seen[:-WINDOW] if before else seen[-WINDOW:]
        if len(window) < WINDOW or any(name not in metrics for metrics in window):
            return None
        return sum(metrics[name] for metrics in window) / WINDOW

    def _small(self, norm: float) -> str | None:
        return SMALL.format(norm=norm, least=self._least_norm) if 0 < norm < self._least_norm else None

    def _accurate(self, step: int) -> str | None:
        accuracy = self._mean("rewards/accuracies")
        if accuracy is None or accuracy < NEAR_ONE or step > EARLY:
            return None
        return ACCURATE.format(accuracy=accuracy, step=step)

    def _rising(self) -> str | None:
        chosen, reference = self._mean("error/chosen"), self._mean("error/reference_chosen")
        margin, margin_before = self._mean("rewards/margins"), self._mean("rewards/margins", before=True)
        if chosen is None or reference is None or margin is None or margin_before is None:
            return None
        if chosen <= (1 + RISE) * reference or not margin > max(margin_before, 0.0):
            return None
        return RISING.format(chosen=chosen, reference=reference)
