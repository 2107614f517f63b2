"""MPS's condition mask and cross model (Zhang et al., arXiv:2405.14705): image tokens that look at the prompt's tokens.

    x = x + cross(norm x; text) + ff(norm x)        then        x = x + self(norm x) + ff(norm x)      four times

As in PaLM: norms have no bias, all heads of a layer share one key and one value head, the feed-forward part runs beside
attention and is gated (SwiGLU). Self-attention has rotary positions. Names of weights are the published ones without
`fn.`, which the authors' residual wrapper adds.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

SPEEDS = "rotary_emb.inv_freq"
"""How the names of buffers with rotary speeds end."""


def relevant_tokens(text: Tensor, condition: Tensor, threshold: float) -> Tensor:
    """Which of a prompt's tokens `[b n d]` say something of what the condition's `[m d]` ask for: `[b n]` bool.

    A token's relevance is its largest product with a token of the condition, divided by that of the most relevant token
    of the same prompt. (The authors divide by the largest of the batch, so their scores depend on who else is in it;
    with one prompt at a time it is the same.) The most relevant token has 1, so one at least remains below a threshold
    of 1.
    """
    relevance = (text @ condition.T).amax(-1)
    return relevance / relevance.amax(-1, keepdim=True) > threshold


class SwiGLU(nn.Module):
    """Gates the first half of the channels with the second."""

    def forward(self, x: Tensor) -> Tensor:
        """`[... 2d]` -> `[... d]`."""
        x, gate = x.chunk(2, dim=-1)
        return functional.silu(gate) * x


class CrossAttention(nn.Module):
    """Image tokens look at the prompt's tokens, beside a feed-forward part; `head` and `hidden` are their widths."""

    def __init__(self, width: int, heads: int, head: int, hidden: int):
        super().__init__()
        self.head = head
        self.norm = nn.LayerNorm(width, bias=False)
        self.to_q = nn.Linear(width, heads * head, bias=False)
        self.to_kv = nn.Linear(width, 2 * head, bias=False)
        self.to_out = nn.Linear(heads * head, width, bias=False)
        self.ff = nn.Sequential(
            nn.Linear(width, 2 * hidden, bias=False), SwiGLU(), nn.Linear(hidden, width, bias=False)
        )

    def forward(self, x: Tensor, text: Tensor, seen: Tensor) -> Tensor:
        """`[b i d]`, `[b n d]`, `[b n]` -> `[b i d]`."""
        x = self.norm(x)
        key, value = self.to_kv(text).chunk(2, dim=-1)
        return self.to_out(attend(_split(self.to_q(x), self.head), key, value, seen[:, None, None])) + self.ff(x)


class ParallelBlock(nn.Module):
    """Image tokens look at each other, beside a feed-forward part."""

    def __init__(self, width: int, heads: int, head: int, hidden: int):
        super().__init__()
        self.parts = (heads * head, head, head, 2 * hidden)
        self.norm = nn.LayerNorm(width, bias=False)
        self.rotary_emb = nn.Module()
        self.rotary_emb.register_buffer("inv_freq", rotary_speeds(head))
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.parts), bias=False)
        self.attn_out = nn.Linear(heads * head, width, bias=False)
        self.ff_out = nn.Sequential(SwiGLU(), nn.Linear(hidden, width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """`[b i d]` -> `[b i d]`."""
        query, key, value, hidden = self.fused_attn_ff_proj(self.norm(x)).split(self.parts, dim=-1)
        speeds = self.rotary_emb.inv_freq
        query, key = rotate(_split(query, self.parts[1]), speeds), rotate(key, speeds)
        return self.attn_out(attend(query, key, value)) + self.ff_out(hidden)


class CrossModel(nn.Module):
    """Pairs of cross-attention and a parallel block."""

    def __init__(self, layers: int, *sizes: int):
        super().__init__()
        pairs = ([CrossAttention(*sizes), ParallelBlock(*sizes)] for _ in range(layers))
        self.layers = nn.ModuleList(nn.ModuleList(pair) for pair in pairs)

    def forward(self, image: Tensor, text: Tensor, seen: Tensor) -> Tensor:
        """Mix the prompt's tokens `[b n d]` that count, `[b n]` bool, into the image's: `[b i d]` -> `[b i d]`."""
        for cross, block in self.layers:
            image = image + cross(image, text, seen)
            image = image + block(image)
        return image


def build_cross_model(state: Mapping[str, Tensor]) -> CrossModel:
    """A cross model as large as its weights, which are not loaded; `KeyError` if one that tells a size is missing."""
    inner, width = state["layers.0.0.to_q.weight"].shape
    head, hidden = len(state["layers.0.0.to_kv.weight"]) // 2, state["layers.0.0.ff.2.weight"].shape[1]
    layers = 1 + max(int(name.split(".")[1]) for name in state)
    return CrossModel(layers, width, inner // head, head, hidden)


def attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None) -> Tensor:
    """Attention whose heads share key and value: `[b h i c]`, `[b n c]` twice -> `[b i (h c)]`."""
    shared = (x[:, None].expand(-1, query.shape[1], -1, -1) for x in (key, value))
    return functional.scaled_dot_product_attention(query, *shared, attn_mask=seen).transpose(1, 2).flatten(2)


def rotary_speeds(channels: int) -> Tensor:
    """Radians per position, 10000^(-2c/d): `[d / 2]`."""
    return 10000.0 ** (-torch.arange(0, channels, 2, dtype=torch.float32) / channels)


def rotate(x: Tensor, speeds: Tensor) -> Tensor:
    """Turn channels c and c + d/2 of `[... n d]` by position times speed `[d / 2]`: rotary positions (2104.09864).

    The product has the precision of the speeds, as in the authors' code: half, for their weights.
    """
    positions = torch.arange(x.shape[-2], device=x.device).to(speeds.dtype)
    angle = torch.outer(positions, speeds).float().repeat(1, 2)
    first, second = x.chunk(2, dim=-1)
    return x * angle.cos().to(x.dtype) + torch.cat((-second, first), dim=-1) * angle.sin().to(x.dtype)


def _split(x: Tensor, channels: int) -> Tensor:
    """`[b n (h c)]` -> `[b h n c]`."""
    return x.unflatten(-1, (-1, channels)).transpose(1, 2)
