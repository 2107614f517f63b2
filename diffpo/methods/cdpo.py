"""Conservative DPO (Mitchell 2023, a note on DPO with noisy preferences): DPO with smoothed labels.

loss = -(1 - e) log sigmoid(u) - e log sigmoid(-u)        u = beta margin
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffpo.core import objectives
from diffpo.core.types import PairBatch
from diffpo.methods.base import PairwiseMethod, check_fraction


@dataclass(frozen=True, kw_only=True)
class CDPO(PairwiseMethod):
    """Conservative DPO: labels are wrong with a known probability, and the policy should stay unsure."""

    beta: float = 2000.0
    """As for `dpo`."""
    label_smoothing: float = 0.1
    """Probability e that a label is wrong, below 1/2; 0 is DPO."""

    def __post_init__(self) -> None:
        """Refuse labels that are wrong more often than not.

        Raises:
            ConfigError: `label_smoothing` is not in [0, 1/2), or as for `PairwiseMethod`.
        """
        super().__post_init__()
        check_fraction("label_smoothing", self.label_smoothing, below=0.5)

    def objective(self, margin: Tensor, batch: PairBatch) -> Tensor:
        """Cross entropy with the smoothed label, `[b]`."""
        return objectives.cdpo(self.beta * margin, self.label_smoothing)
