"""DCPO (Saeidi et al. 2025, arXiv:2502.06023): Diffusion-DPO with a caption for each image of the pair.

    loss = -log sigmoid( -beta/2 [ (M_c - R_c) - (M_r - R_r) ] )      both networks are told caption z_c, or z_r

The maths is DPO's; what is new is data (`diffpo data caption`, `diffpo data perturb`). With two conditions the
partition functions no longer cancel, so this is a heuristic and no maximum likelihood. The released trainer forces
the epsilon target onto SD2.1, a v model, and drops no captions; diffpo uses the model's own target and drops both
captions together.
"""

from dataclasses import dataclass
from typing import ClassVar

from diffpo.core.block import Positive
from diffpo.methods.dpo import DPO


@dataclass(frozen=True, kw_only=True)
class DCPO(DPO):
    """DCPO: Diffusion-DPO on two captions."""

    requires: ClassVar[frozenset[str]] = frozenset({"chosen_prompt", "rejected_prompt"})

    beta: Positive = 5000.0
    """5000 in the paper's main tables, 500 in its run script."""
