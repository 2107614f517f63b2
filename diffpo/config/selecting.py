"""What `train.select` is told: which scorer judges the updates of a run, by which images, and when it may stop."""

from dataclasses import dataclass
from typing import Annotated

from diffpo.config.blocks import Named
from diffpo.core.block import Block, Count, Seed
from diffpo.errors import ConfigError
from diffpo.scorers import SCORERS, Scorer


@dataclass(frozen=True, kw_only=True)
class Select(Block):
    """Keep the update whose images a scorer prefers.

    This is the early stopping of RPO (Miao et al. 2024, arXiv:2407.12164) with any scorer. Images are made as `sample`
    says. The scorer has a hand in the model then, and later comparisons say so.
    """

    scorer: Annotated[Scorer, Named(SCORERS, "scorer")]
    """What judges: a block such as `{name: pickscore}`, or as for `--scorer`: `pickscore,scale=cosine`."""
    prompts: tuple[str, ...] | str
    """Prompts that nothing is learned from, a file of prompts, or a named set such as `shapes:validation:20`."""
    seeds: tuple[Seed, ...] = (0,)
    """One image per prompt and seed, the same at each look."""
    every: Count = 40
    """Updates between two looks, 40 in RPO; the last update is always looked at."""
    patience: Count | None = None
    """Looks without a better mean score after which the run stops; null: it goes on to `train.steps`."""

    def __post_init__(self) -> None:
        """Check the ranges, and that there is something to look at."""
        super().__post_init__()
        empty = next((name for name in ("prompts", "seeds") if not getattr(self, name)), None)
        if empty is not None:
            raise ConfigError(f"{empty} is empty; give one at least")
