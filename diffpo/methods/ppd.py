"""PPD (Dang et al. 2025, arXiv:2501.06655): Diffusion-DPO of a network that is told whose preferences a pair shows.

    loss = -log sigmoid( -beta/2 [ (M_c(u) - R_c) - (M_r(u) - R_r) ] )

with M(u) the mean squared error of the policy that is told the user u of the pair, and R that of the reference, which
is told none. It is a preset: DPO with a user adapter (`model=user`) and users' states (`data.users`); a share of the
pairs is learned without their user (`data.user_dropout`). Any other objective works with the two as well.
"""

from dataclasses import dataclass
from typing import ClassVar

from diffpo.methods.dpo import DPO


@dataclass(frozen=True, kw_only=True)
class PPD(DPO):
    """PPD: Diffusion-DPO for many users, each with preferences of their own, by one model."""

    requires: ClassVar[frozenset[str]] = frozenset({"user_id"})
