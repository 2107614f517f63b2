"""A Stable Diffusion UNet of which all between its products runs as kernels of ours, on a GPU, in half precision.

Besides norms, activations and gates these are the sums between them: a convolution's bias, what a block adds to what
it was given, and the sum of two gradients.

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
        "ResnetBlock2D": (_is_usual_resnet, _resnet),
        "BasicTransformerBlock": (_is_usual_block, _block),
        "Attention": (_is_usual_attention, _attention),
        "GEGLU": (lambda module: True, _geglu),
        "Upsample2D": (_is_usual_upsampler, _upsample),
    }
    for module in list(network.modules()):
        name: Any = type(module).__name__
        usual, call = replacements.get(name, (None, None))
        if usual is not None and call is not None and usual(module):
            module.forward = MethodType(call, module)
        elif name == "BasicTransformerBlock" and module.norm_type == "layer_norm":
            for norm in filter(_is_usual_norm, (module.norm1, module.norm2, module.norm3)):
                norm.forward = MethodType(_layer_norm, norm)
        elif name == "Transformer2DModel" and type(module.norm) is nn.GroupNorm:
            module.norm.forward = MethodType(_group_norm, module.norm)
            module._operate_on_continuous_inputs = MethodType(_taken_in, module)
            module._get_output_for_continuous_inputs = MethodType(_handed_on, module)


def _is_usual_resnet(block: Any) -> bool:
    """Whether a block of convolutions is built as Stable Diffusion's are."""
    return (
        block.upsample is None
        and block.downsample is None
        and block.time_embedding_norm == "default"
        and not block.skip_time_act
        and isinstance(block.nonlinearity, nn.SiLU)
    )


def _is_usual_norm(norm: Any) -> bool:
    return type(norm) is nn.LayerNorm and norm.bias is not None


def _is_usual_block(block: Any) -> bool:
    """Whether a transformer block is built as Stable Diffusion's are."""
    norms = (block.norm1, block.norm2, block.norm3)
    return (
        block.norm_type == "layer_norm"
        and all(map(_is_usual_norm, norms))
        and block.pos_embed is None
        and block.attn2 is not None
    )


def _is_usual_attention(attention: Any) -> bool:
    """Whether an attention is nothing but its four projections."""
    besides = (attention.spatial_norm, attention.group_norm, attention.norm_q, attention.norm_k, attention.norm_cross)
    return (
        all(norm is None for norm in besides)
        and not attention.residual_connection
        and attention.rescale_output_factor == 1
        and attention.inner_kv_dim == attention.inner_dim
        and attention.to_out is not None
        and attention.to_out[1].p == 0
    )


def _is_usual_upsampler(module: Any) -> bool:
    """Whether a module doubles the sides of images and passes them to a convolution."""
    return module.norm is None and module.interpolate and module.use_conv and not module.use_conv_transpose


def _resnet(self: Any, input_tensor: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
    """As diffusers' `ResnetBlock2D`: norm, SiLU, convolution, time, norm, SiLU, convolution, and what came in."""
    if input_tensor.dtype not in HALF:
        return type(self).forward(self, input_tensor, temb, *args, **kwargs)
    x, hidden = _normalised(input_tensor, None, self.norm1, silu=True)
    shift = None if temb is None or self.time_emb_proj is None else self.time_emb_proj(F.silu(temb))
    if type(self.conv1) is nn.Conv2d and shift is not None:
        # what the convolution adds to each channel is added together with the time, by the norm's kernel
        hidden, bias = _without_bias(self.conv1, hidden), self.conv1.bias
        shift = shift if bias is None else shift + bias.to(shift.dtype)
    else:
        hidden = self.conv1(hidden)
    hidden = self.dropout(_normalised(hidden, shift, self.norm2, silu=True)[1])
    if self.conv_shortcut is not None:
        x = _per_cell(self.conv_shortcut, x)
    if type(self.conv2) is nn.Conv2d and self.conv2.bias is not None:
        from diffpo.models.kernels import Added

        x = Added.apply(_without_bias(self.conv2, hidden), self.conv2.bias, x)
    else:
        x = x + self.conv2(hidden)
    return x if self.output_scale_factor == 1 else x / self.output_scale_factor


def _normalised(x: Tensor, shift: Tensor | None, norm: nn.GroupNorm, silu: bool) -> tuple[Tensor, Tensor]:
    """Half-precision images `[n c h w]`, and their group norm, moved by `shift` `[n c]`, then SiLU if asked for."""
    from diffpo.models.kernels import GroupNorm

    x = x.contiguous(memory_format=torch.channels_last)
    return GroupNorm.apply(x, shift, norm.weight, norm.bias, norm.num_groups, norm.eps, silu)  # pyright: ignore


def _without_bias(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)


def _per_cell(conv: Any, x: Tensor) -> Tensor:
    """What a convolution of 1 x 1 makes of images: a matrix product, which adds the bias without a pass of its own."""
    if type(conv) is not nn.Conv2d or (conv.kernel_size, conv.stride, conv.groups) != ((1, 1), (1, 1), 1):
        return conv(x)
    cells = x.permute(0, 2, 3, 1)
    return F.linear(cells, conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)


def _upsample(self: Any, hidden_states: Tensor, output_size: int | None = None, *args: Any, **kwargs: Any) -> Tensor:
    """As diffusers' `Upsample2D`; under autocast torch would make the larger images in single precision."""
    if hidden_states.dtype not in HALF or output_size is not None:
        return type(self).forward(self, hidden_states, output_size, *args, **kwargs)
    from diffpo.models.kernels import Doubled

    return (self.conv if self.name == "conv" else self.Conv2d_0)(Doubled.apply(hidden_states))


def _group_norm(self: nn.GroupNorm, input: Tensor) -> Tensor:
    if input.dtype not in HALF:
        return nn.GroupNorm.forward(self, input)
    return _normalised(input, None, self, silu=False)[1]


def _taken_in(self: Any, hidden_states: Tensor) -> tuple[Tensor, int]:
    """What diffusers does before the blocks of a `Transformer2DModel`: a norm, a projection, a row for each cell."""
    if hidden_states.dtype not in HALF or self.use_linear_projection:
        return type(self)._operate_on_continuous_inputs(self, hidden_states)
    states = _per_cell(self.proj_in, self.norm(hidden_states)).permute(0, 2, 3, 1).flatten(1, 2)
    return states, states.shape[-1]


def _handed_on(
    self: Any, hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, inner_dim: int
) -> Tensor:
    """What diffusers does after the blocks of a `Transformer2DModel`, without a copy that puts channels first."""

    def as_images(x: Tensor) -> Tensor:
        return x.reshape(batch_size, height, width, inner_dim).permute(0, 3, 1, 2)

    if self.use_linear_projection:
        return as_images(self.proj_out(hidden_states)) + residual
    project = self.proj_out if hidden_states.dtype not in HALF else lambda x: _per_cell(self.proj_out, x)
    return project(as_images(hidden_states)) + residual


def _block(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    timestep: Tensor | None = None,
    cross_attention_kwargs: dict[str, Any] | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """As diffusers' `BasicTransformerBlock`: attention to itself, to the text, a gated layer, each after a norm."""
    x, text = hidden_states, encoder_hidden_states
    if x.dtype not in HALF or x.ndim != 3 or cross_attention_kwargs or self._chunk_size is not None:
        more = (attention_mask, text, encoder_attention_mask, timestep, cross_attention_kwargs, *args)
        return type(self).forward(self, x, *more, **kwargs)
    from diffpo.models.kernels import LayerNorm

    def norm(norm: nn.LayerNorm, x: Tensor, added: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return LayerNorm.apply(x, added, norm.weight, norm.bias, norm.eps)  # pyright: ignore

    x, normed = norm(self.norm1, x)
    normed = self.attn1(normed, text if self.only_cross_attention else None, attention_mask)
    x, normed = norm(self.norm2, x, normed)
    x, normed = norm(self.norm3, x, self.attn2(normed, text, encoder_attention_mask))
    return x + self.ff(normed)


def _layer_norm(self: nn.LayerNorm, input: Tensor) -> Tensor:
    if input.dtype not in HALF:
        return nn.LayerNorm.forward(self, input)
    from diffpo.models.kernels import LayerNorm

    return LayerNorm.apply(input, None, self.weight, self.bias, self.eps)[1]  # pyright: ignore


def _attention(
    self: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """As diffusers' `Attention` computes it by default, where nothing is masked: without a division by 1."""
    usual = type(self.processor).__name__ == "AttnProcessor2_0" and hidden_states.ndim == 3
    if not usual or attention_mask is not None or kwargs:
        return type(self).forward(self, hidden_states, encoder_hidden_states, attention_mask, **kwargs)
    source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
    heads = (len(hidden_states), -1, self.heads, self.inner_dim // self.heads)
    query, key, value = self.to_q(hidden_states), self.to_k(source), self.to_v(source)
    query, key, value = (x.view(heads).transpose(1, 2) for x in (query, key, value))
    answer = F.scaled_dot_product_attention(query, key, value)
    return self.to_out[0](answer.transpose(1, 2).flatten(2))


def _geglu(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if type(self.proj) is nn.Linear and hidden_states.dtype in HALF:  # the kernel adds the bias, and sums its gradient
        states, bias = F.linear(hidden_states, self.proj.weight), self.proj.bias
    else:
        states, bias = self.proj(hidden_states), None
    if states.dtype not in HALF:
        states, gate = states.chunk(2, dim=-1)
        return states * F.gelu(gate)
    from diffpo.models.kernels import Geglu

    return Geglu.apply(states, bias)  # pyright: ignore
