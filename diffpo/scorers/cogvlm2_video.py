"""CogVLM2-Video (Hong et al., arXiv:2408.16500), whose classes transformers lacks: an EVA tower sees, a Llama 3 reads.

    <bos>, of each frame: begin, 8 x 8 patches, end, its number in the clip as text; then the question

All patches of a frame have one position, so that positions count what is read. The text part is transformers' own
Llama; in the published weights its queries, keys and values are one matrix. The published program computes rotary
positions in the dtype of the weights; here they are in float32 in every dtype.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ROTARY_BASE = 500_000.0
"""Of Llama 3; the published program has it in its code."""
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_RENAMED = {
    "self_attn.language_expert_dense.": "self_attn.o_proj.",
    "mlp.language_mlp.": "mlp.",
}
_FUSED = "self_attn.language_expert_query_key_value.weight"
_TOWER = "model.vision."


class Tower(nn.Module):
    """What sees: `[f 3 s s]` normalised pixels -> `[f n d]` for the text part, begin and end of each frame included.

    Modules are named as in the published weights.
    """

    def __init__(self, config: Mapping[str, Any]):
        """Build it from the whole model's configuration."""
        super().__init__()
        vision, width = config["vision_config"], config["hidden_size"]
        self.patch_embedding = Patches(vision)
        self.transformer = nn.Module()
        self.transformer.layers = nn.ModuleList(Layer(vision) for _ in range(vision["num_hidden_layers"]))
        self.conv = nn.Conv2d(vision["hidden_size"], width, kernel_size=2, stride=2)
        self.linear_proj = Gated(width, config["intermediate_size"])
        self.boi, self.eoi = (nn.Parameter(torch.zeros(1, 1, width)) for _ in range(2))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embedding(pixels)
        for layer in self.transformer.layers:
            x = layer(x)
        side = round((x.shape[1] - 1) ** 0.5)
        grid = x[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        seen = self.linear_proj(self.conv(grid).flatten(2).transpose(1, 2))
        return torch.cat([self.boi.expand(len(seen), -1, -1), seen, self.eoi.expand(len(seen), -1, -1)], dim=1)


class Patches(nn.Module):
    """Pixels as tokens, behind one of no patch."""

    def __init__(self, vision: Mapping[str, Any]):
        super().__init__()
        width, patch = vision["hidden_size"], vision["patch_size"]
        self.proj = nn.Conv2d(vision["in_channels"], width, kernel_size=patch, stride=patch)
        self.cls_embedding = nn.Parameter(torch.zeros(1, width))
        self.position_embedding = nn.Embedding(vision["num_positions"], width)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.proj(pixels).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_embedding.expand(len(x), -1, -1), x], dim=1) + self.position_embedding.weight


class Layer(nn.Module):
    """Attention and a feed-forward part, each normalised behind itself."""

    def __init__(self, vision: Mapping[str, Any]):
        from transformers.activations import ACT2FN

        super().__init__()
        width, hidden, eps = vision["hidden_size"], vision["intermediate_size"], vision["layer_norm_eps"]
        self.heads, self.activation = vision["num_heads"], ACT2FN[vision["hidden_act"]]
        self.input_layernorm, self.post_attention_layernorm = (nn.LayerNorm(width, eps=eps) for _ in range(2))
        self.attention = nn.ModuleDict(
            {"query_key_value": nn.Linear(width, 3 * width), "dense": nn.Linear(width, width)}
        )
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.attention["query_key_value"](x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        found = functional.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (query, key, value)))
        x = x + self.input_layernorm(self.attention["dense"](found.transpose(1, 2).flatten(2)))
        return x + self.post_attention_layernorm(self.mlp["fc2"](self.activation(self.mlp["fc1"](x))))


class Gated(nn.Module):
    """From what was seen to what can be read."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.linear_proj = nn.Linear(width, width, bias=False)
        self.norm1 = nn.LayerNorm(width)
        self.gate_proj, self.dense_h_to_4h = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.dense_4h_to_h = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.norm1(self.linear_proj(x)))
        return self.dense_4h_to_h(functional.silu(self.gate_proj(x)) * self.dense_h_to_4h(x))


def empty_text_part(config: Mapping[str, Any]) -> Any:
    """The text part as a configuration says, without weights."""
    from accelerate import init_empty_weights
    from transformers import LlamaConfig, LlamaForCausalLM

    same = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "rms_norm_eps",
    )
    told = {name: config[name] for name in same} | {"num_key_value_heads": config["num_multi_query_heads"]}
    rotary = {"rope_type": "default", "rope_theta": ROTARY_BASE}
    with init_empty_weights(include_buffers=False):  # billions of random numbers would take minutes
        return LlamaForCausalLM(LlamaConfig(**told, rope_parameters=rotary, tie_word_embeddings=False))


def split_state(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Divide published weights into the text part's, by transformers' names, and the tower's."""
    tower = {name.removeprefix(_TOWER): value for name, value in state.items() if name.startswith(_TOWER)}
    width = config["hidden_size"] // config["num_attention_heads"]
    sizes = [width * config[key] for key in ("num_attention_heads", *("num_multi_query_heads",) * 2)]
    text = {}
    for name, value in state.items():
        if name.startswith(_TOWER) or name.endswith("inv_freq"):
            continue
        if name.endswith(_FUSED) and len(value) == sum(sizes):
            for letter, part in zip("qkv", value.split(sizes), strict=True):
                text[name.replace(_FUSED, f"self_attn.{letter}_proj.weight")] = part
        else:
            for old, new in _RENAMED.items():
                name = name.replace(old, new)
            text[name] = value
    return text, tower


def as_pixels(frames: Tensor, side: int) -> Tensor:
    """Bring frames `[f h w 3]` of bytes to `[f 3 side side]`: normalised, the short side scaled, the middle cut out."""
    mean, std = (torch.tensor(x).view(3, 1, 1, 1) for x in (MEAN, STD))
    x = (frames.permute(3, 0, 1, 2).float() / 255 - mean) / std
    height, width = x.shape[2:]
    size = [side * height // width, side] if width < height else [side, side * width // height]
    x = functional.interpolate(x, size, mode="bilinear", align_corners=False)
    top, left = (round((edge - side) / 2) for edge in size)
    return x[:, :, top : top + side, left : left + side].transpose(0, 1)


def read_clip(seen: Tensor, numbers: Sequence[Sequence[int]], begin: int, embed: nn.Module) -> tuple[Tensor, list[int]]:
    """What stands before a question, and its positions.

    Args:
        seen: `[f n d]` from the tower.
        numbers: The tokens of each frame's number.
        begin: The token at the beginning.
        embed: Tokens to states.

    Returns:
        `[1 m d]`, and m positions.
    """
    rows = [embed(torch.tensor([begin], device=seen.device))]
    for frame, number in zip(seen, numbers, strict=True):
        rows += [frame.to(rows[0].dtype), embed(torch.tensor([*number], device=seen.device))]
    patches = seen.shape[1] - 2
    steps = chain([0], *([1, 1, *[0] * (patches - 1), 1, *[1] * len(number)] for number in numbers))
    return torch.cat(rows)[None], [*accumulate(steps)]
