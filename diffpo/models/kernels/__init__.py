"""Triton kernels for what stands between the products of a Stable Diffusion UNet, forward and backward.

Under autocast torch computes norms in float32: it writes the input in float32, the result in float32, its SiLU in
float32, and rounds that for the convolution. Here each of these is one pass that reads half precision, computes in
float32 and writes what the convolution would have rounded: the same arithmetic for a fifth of the memory traffic. No
sum uses atomic additions, so results repeat bit for bit.
"""

from diffpo.models.kernels.geglu import Geglu
from diffpo.models.kernels.group_norm import GroupNorm
from diffpo.models.kernels.images import Added, Doubled
from diffpo.models.kernels.layer_norm import LayerNorm

__all__ = ["Added", "Doubled", "Geglu", "GroupNorm", "LayerNorm"]
