"""DDIM-InPO (Lu et al. 2025, arXiv:2503.18454): Diffusion-DPO on inverted images.

    z    = DDIM inversion of x0 to time t, of each image by itself        eps = (z - alpha x0) / sigma
    loss = -log sigmoid( -beta/2 [ (M_c - R_c) - (M_r - R_r) ] )

with M, R the mean squared errors of policy and reference on z and the recovered eps. The released code is right at
batch size 1 only, ends on its grid's next point, and calls that point t: `inversion.landing=released` does that, to
each row.
"""

from dataclasses import dataclass, field

from diffpo.core.block import Positive
from diffpo.core.inversion import Inversion
from diffpo.methods.dpo import DPO


@dataclass(frozen=True, kw_only=True)
class InPO(DPO):
    """DDIM-InPO: Diffusion-DPO at the latents that would draw the images."""

    beta: Positive = 2000.0
    """2000 for SD1.5, 5000 for SDXL, as released."""
    inversion: Inversion | None = field(default_factory=Inversion)
    """10 steps; the released code adds eta = 0.1, which the paper does not mention."""
