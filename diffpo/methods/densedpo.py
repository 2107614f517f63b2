"""DenseDPO (Wu et al. 2025, arXiv:2506.03517): Diffusion-DPO on clips, with a label for each segment of a second.

    loss = -log sigmoid( -beta/2 l_f [ (M_0f - R_0f) - (M_1f - R_1f) ] )        for each latent frame f with l_f = 1, -1

with M_if, R_if the mean squared errors of policy and reference on frame f of clip i. The update divides the sum by the
number of frames that are no ties, over all pairs. This is the pseudo-code of the paper's appendix; its eq. 7 has one
sigmoid of a sum over the segments, and no factor 1/2 (`dense=joint`). It is a preset: DPO with `dense`.
"""

from dataclasses import dataclass
from typing import ClassVar

from diffpo.core.block import Positive
from diffpo.core.terms import Dense
from diffpo.methods.dpo import DPO


@dataclass(frozen=True, kw_only=True)
class DenseDPO(DPO):
    """DenseDPO: Diffusion-DPO that compares two clips frame by frame."""

    requires: ClassVar[frozenset[str]] = frozenset({"segments"})

    beta: Positive = 500.0
    """500 in the paper, at every time t."""
    dense: Dense = "frame"
    """`frame` is the paper's pseudo-code, `joint` its eq. 7 (with our mean over the clip in the place of its sum)."""
