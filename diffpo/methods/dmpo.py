"""DMPO, divergence minimisation preference optimisation, as in the Diffusion-SDPO authors' code (arXiv:2511.03317).

loss = KL( sigmoid(u) || 1 - alpha )        u = beta margin; a reverse KL of two coins
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffpo.core import objectives
from diffpo.core.types import PairBatch
from diffpo.errors import ConfigError
from diffpo.methods.base import PairwiseMethod


@dataclass(frozen=True, kw_only=True)
class DMPO(PairwiseMethod):
    """DMPO: the policy's preference is pulled to 1 - alpha by a reverse KL."""

    beta: float = 2000.0
    """2000 for SD1.5, 6000 for SDXL."""
    alpha: float = 0.01
    """Probability that is left to the rejected image, in (0, 1/2)."""

    def __post_init__(self) -> None:
        """Refuse targets that do not prefer the chosen image, or are certain.

        Raises:
            ConfigError: alpha is not in (0, 1/2), or as for `PairwiseMethod`.
        """
        super().__post_init__()
        if not 0 < self.alpha < 0.5:
            raise ConfigError(f"alpha is {self.alpha}; it must lie between 0 and 1/2, both excluded")

    def objective(self, margin: Tensor, batch: PairBatch) -> Tensor:
        """KL divergence of the policy's coin from the target's, `[b]`."""
        return objectives.dmpo(self.beta * margin, self.alpha)
