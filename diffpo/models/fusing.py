"""A Stable Diffusion UNet whose norms, activations and gates run as kernels of ours, on a GPU, in half precision.

Policy and reference use the same kernels, with gradients or without, so that equal networks still give equal answers.
Nothing is compiled beforehand but these few kernels, whatever the sizes of the network and of the batch. Parts that are
made in another way than Stable Diffusion's stay as they are, and so does everything in single precision.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._triton import has_triton

HALF = (torch.bfloat16, torch.float16)


def can_fuse(device: torch.device) -> bool:
    """Whether the kernels run on a device."""
    return device.type == "cuda" and has_triton()


def fuse(network: nn.Module) -> None:
    """Replace the calls of a UNet's parts, in place; its parameters and their names stay."""
    replacements: dict[str, tuple[Callable[[Any], bool], Callable[..., Any]]] = {
        "ResnetBlock2D": (_is_usual, _resnet),
        "GEGLU": (lambda module: True, _geglu),
    }
    for module in list(network.modules()):
        name: Any = type(module).__name__
        usual, call = replacements.get(name, (None, None))
        if usual is not None and call is not None and usual(module):
            _replace(module, call)
        elif name == "BasicTransformerBlock" and module.norm_type == "layer_norm":
            for norm in (module.norm1, module.norm2, module.norm3):
                if type(norm) is nn.LayerNorm and norm.bias is not None:
                    _replace(norm, _layer_norm)
        elif name == "Transformer2DModel" and type(module.norm) is nn.GroupNorm:
            _replace(module.norm, _group_norm)
            module._get_output_for_continuous_inputs = MethodType(_handed_on, module)


def _replace(module: nn.Module, call: Callable[..., Any]) -> None:
    module.forward = MethodType(call, module)


def _is_usual(block: Any) -> bool:
    """Whether a block of convolutions is built as Stable Diffusion's are."""
    return (
        block.upsample is None
        and block.downsample is None
        and block.time_embedding_norm == "default"
        and not block.skip_time_act
        and isinstance(block.nonlinearity, nn.SiLU)
    )


def normalised(x: Tensor, shift: Tensor | None, norm: nn.GroupNorm, silu: bool) -> Tensor:
    """Group norm of half-precision images `[n c h w]` moved by `shift` `[n c]`, then SiLU if asked for."""
    from diffpo.models.kernels import GroupNorm

    x = x.contiguous(memory_format=torch.channels_last)
    return GroupNorm.apply(x, shift, norm.weight, norm.bias, norm.num_groups, norm.eps, silu)  # pyright: ignore


def _resnet(self: Any, input_tensor: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
    """As diffusers' `ResnetBlock2D`: norm, SiLU, convolution, time, norm, SiLU, convolution, and what came in."""
    if input_tensor.dtype not in HALF:
        return type(self).forward(self, input_tensor, temb, *args, **kwargs)
    x = input_tensor.contiguous(memory_format=torch.channels_last)
    hidden, shift = normalised(x, None, self.norm1, silu=True), None
    if type(self.conv1) is nn.Conv2d and temb is not None and self.time_emb_proj is not None:
        # what the convolution adds to each channel is added together with the time, by the norm's kernel
        conv = self.conv1
        hidden = F.conv2d(hidden, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
        shift = self.time_emb_proj(F.silu(temb))
        shift = shift if conv.bias is None else shift + conv.bias.to(shift.dtype)
    else:
        hidden = self.conv1(hidden)
        if temb is not None and self.time_emb_proj is not None:
            shift = self.time_emb_proj(F.silu(temb))
    hidden = self.dropout(normalised(hidden, shift, self.norm2, silu=True))
    if self.conv_shortcut is not None:
        x = self.conv_shortcut(x)
    x = x + self.conv2(hidden)
    return x if self.output_scale_factor == 1 else x / self.output_scale_factor


def _group_norm(self: nn.GroupNorm, input: Tensor) -> Tensor:
    if input.dtype not in HALF:
        return nn.GroupNorm.forward(self, input)
    return normalised(input, None, self, silu=False)


def _layer_norm(self: nn.LayerNorm, input: Tensor) -> Tensor:
    if input.dtype not in HALF:
        return nn.LayerNorm.forward(self, input)
    from diffpo.models.kernels import LayerNorm

    return LayerNorm.apply(input, self.weight, self.bias, self.eps)  # pyright: ignore


def _geglu(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    states = self.proj(hidden_states)
    if states.dtype not in HALF:
        states, gate = states.chunk(2, dim=-1)
        return states * F.gelu(gate)
    from diffpo.models.kernels import Geglu

    return Geglu.apply(states)  # pyright: ignore


def _handed_on(
    self: Any, hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, inner_dim: int
) -> Tensor:
    """What diffusers does after the blocks of a `Transformer2DModel`, without a copy that puts channels first."""

    def as_images(x: Tensor) -> Tensor:
        return x.reshape(batch_size, height, width, inner_dim).permute(0, 3, 1, 2)

    if self.use_linear_projection:
        return as_images(self.proj_out(hidden_states)) + residual
    return self.proj_out(as_images(hidden_states)) + residual
