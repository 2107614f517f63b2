"""Which update of a run is exported: the one whose images a scorer prefers (`train.select`).

At each look images of fixed prompts and seeds are drawn with the weights as they would be exported, and judged. The
weights of the best look so far lie in host memory, and in every checkpoint, so that a run that goes on after a kill
ends with the same choice.
"""

from __future__ import annotations

from itertools import product
from math import isfinite
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from diffpo.config.selecting import Select
from diffpo.errors import UserError
from diffpo.media.folder import Media
from diffpo.training.checkpoint import trained_weights
from diffpo.training.processes import by_the_first
from diffpo.training.samples import Drawer, prompts_of


class Selection:
    """The looks of a run, and the best of them."""

    def __init__(self, select: Select, drawer: Drawer):
        """Nothing is chosen yet.

        Args:
            select: What judges, and what it looks at.
            drawer: Draws with the policy.
        """
        self._select, self._drawer = select, drawer
        jobs = enumerate(product(prompts_of(select.prompts), select.seeds))
        self._media = [
            Media(file=f"{i:03d}", prompt=prompt, prompt_id=i, seed=seed, model="") for i, (prompt, seed) in jobs
        ]
        self.every = select.every
        self.step, self.score, self.worse = 0, -float("inf"), 0
        """The best look's update and mean score, and the looks since."""
        self.weights: dict[str, Tensor] = {}
        """The best look's, on the CPU of the first process; empty before the first look."""

    @property
    def over(self) -> bool:
        """Whether so many looks found nothing better that the run stops."""
        return self._select.patience is not None and self.worse >= self._select.patience

    def look(self, network: nn.Module, done: int) -> dict[str, float]:
        """Draw, judge, and keep the weights if nothing before was better; every process must call this.

        Args:
            network: The policy's, as accelerate wraps it, with the weights that would be exported.
            done: Updates done.

        Returns:
            Values to log: the mean score, the best one, and its update.

        Raises:
            UserError: The scorer cannot judge such images, or gives something that is no number.
        """
        clips = self._drawer.draw(self._media)
        prompts = [item.prompt for item in self._media]
        score = by_the_first(self._drawer.accelerator, lambda: float(self._select.scorer.judge(clips, prompts).mean()))
        if not isfinite(score):
            raise UserError(f"train.select: {self._select.scorer.name} gives a score that is no number, after {done}")
        if score > self.score:
            self.step, self.score, self.worse = done, score, 0
            self.weights = trained_weights(network)
        else:
            self.worse += 1
        return {"select/score": score, "select/best": self.score, "select/step": self.step}

    def conclusion(self, done: int) -> str:
        """Say what is exported of the updates that were done, and what it cost to choose it."""
        stopped = f"stopped after {self.worse} looks that found nothing better: " if self.over else ""
        judged = f"whose mean {self._select.scorer.name} is {self.score:.5g}"
        cost = f"{done - self.step} further updates and {-(-done // self.every) * len(self._media)} images"
        return f"{stopped}update {self.step} of {done} is exported, {judged}; choosing it cost {cost}"

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the weights."""
        return {"step": self.step, "score": self.score if self.step else None, "worse": self.worse}

    def load(self, state: dict[str, Any], weights: dict[str, Tensor]) -> None:
        """Put back what a checkpoint kept."""
        self.step, self.worse, self.weights = state["step"], state["worse"], weights
        self.score = -float("inf") if state["score"] is None else state["score"]


def check_selection(select: Select, accelerator: Accelerator) -> None:
    """Find the prompts and the parts of the scorer, before the work; every process must call this.

    Raises:
        UserError: One of them is not there.
    """

    def find() -> None:
        prompts_of(select.prompts)
        _ = select.scorer.provenance

    by_the_first(accelerator, find)
