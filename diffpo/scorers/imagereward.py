"""ImageReward (Xu et al., arXiv:2304.05977): a BLIP that reads the prompt with an eye on the image, and a reward head.

    reward = (head(CLS of text(prompt; attends to vision(image))) - 0.167) / 1.033      about N(0, 1) on its data

The vision part is a ViT-L/16, the text part a BERT-base with cross-attention in each layer; the head is five linear
layers in a row. Both parts run in transformers' BLIP. The published file names them as BLIP's own code does (`blip.`,
`mlp.`), and `vision_name` maps those names. All sizes are read from the weights; a head of attention has 64 channels.

Checked against the authors' program on small random weights: the published ones were not at hand.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from diffpo.compat import ensure_torchvision
from diffpo.disk.weights import Weights
from diffpo.errors import UserError
from diffpo.scorers.base import JointScorer
from diffpo.scorers.loading import below, describe, load_part, load_state, read_state
from diffpo.scorers.parts import find_beside

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

HUB_MODEL = "THUDM/ImageReward"
HUB_TOKENIZER = "google-bert/bert-base-uncased"
MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the rewards on the authors' data."""
TOKENS = 35
"""Where the authors cut a prompt."""
HEAD_CHANNELS = 64
MARKS = ("[DEC]", "[ENC]")
"""What BLIP adds to BERT's vocabulary, in the order of their ids."""
_TOKENIZER = "BERT's tokenizer, uncased (vocab.txt)"
_VISION_NAMES = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.attn\.qkv\.", ".self_attn.qkv."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"\.norm([12])\.", r".layer_norm\1."),
)


@dataclass(frozen=True, kw_only=True)
class ImageReward(JointScorer):
    """ImageReward, from its published file or one with the same names."""

    name = "imagereward"
    about = "A BLIP trained on experts' rankings of images for a prompt."
    file = "ImageReward.pt"
    what = "an ImageReward"
    origin = f"Hub {HUB_MODEL}, {file}; {HUB_TOKENIZER}"
    scale = "normalised reward"

    path: str = HUB_MODEL
    """Hub id, local folder that holds ImageReward.pt, or the file itself (also as safetensors)."""
    tokenizer: str | None = None
    """Where BERT's tokenizer is; None is beside the weights if there is a vocab.txt, else its Hub id."""

    @property
    def _found(self) -> dict[str, Any]:
        return super()._found | {
            "tokenizer": self._tokenizer.identity,
            "preprocessing": f"PIL, centre crop, {TOKENS} tokens",
        }

    def _prepare(self, images: list[Image]) -> Tensor:
        import torch

        from diffpo.scorers.pixels import resize_and_crop

        side = self._loaded[0].config.image_size
        return torch.stack([resize_and_crop(image, side) for image in images])

    def _score_batch(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        vision, text, head, tokenizer = self._loaded
        tokens = tokenizer(prompts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        states = text(
            input_ids=tokens.input_ids.to(text.device),
            attention_mask=tokens.attention_mask.to(text.device),
            encoder_hidden_states=vision(pixel_values=pixels.to(vision.device, vision.dtype)).last_hidden_state,
        ).last_hidden_state
        return (head(states[:, 0].float())[:, 0] - MEAN) / STD

    @cached_property
    def _tokenizer(self) -> Weights:
        return find_beside(self.tokenizer, self._folder, otherwise=HUB_TOKENIZER, what=_TOKENIZER, probe="vocab.txt")

    @cached_property
    def _loaded(self) -> tuple[Any, Any, Any, Any]:
        """The vision part, the text part, the head and the tokenizer."""
        vision, text, head = self._build(read_state(self._weights.path))
        folder, vocabulary = self._tokenizer.path, text.config.vocab_size
        tokenizer = load_part(folder, "BertTokenizer", "BERT's tokenizer")
        tokenizer.add_tokens(list(MARKS), special_tokens=True)
        if len(tokenizer) != vocabulary:
            raise UserError(
                f"the tokenizer in {folder} has {len(tokenizer)} tokens with {' and '.join(MARKS)}; the weights have "
                f"{vocabulary}. Give tokenizer={HUB_TOKENIZER} or a local copy of it."
            )
        return vision, text, head, tokenizer

    def _build(self, state: dict[str, Tensor]) -> tuple[Any, Any, Any]:
        """Build vision part, text part and head, as large as the weights are, and load them.

        Weights are named as in the published file; its projections, which only training used, are left out.
        """
        ensure_torchvision()
        from torch import nn
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        path = self._weights.path
        vision = {vision_name(name): x for name, x in below(state, "blip.visual_encoder.").items()}
        text = below(state, "blip.text_encoder.")
        text.pop("embeddings.position_ids", None)
        try:
            vision_config = BlipVisionConfig(**_vision_sizes(vision))
            text_config = BlipTextConfig(**_text_sizes(text))
        except (KeyError, ValueError) as error:
            raise UserError(f"{path} holds {describe(state)}, not a whole ImageReward: {error} is missing.") from error
        head, widths = nn.Sequential(), (text_config.hidden_size, 1024, 128, 64, 16, 1)
        for number, sizes in zip((0, 2, 4, 6, 7), pairwise(widths), strict=True):  # dropout has the other numbers
            head.add_module(str(number), nn.Linear(*sizes))
        parts = BlipVisionModel(vision_config), BlipTextModel(text_config, add_pooling_layer=False), head
        states, dtypes = (vision, text, below(state, "mlp.layers.")), (self.dtype, self.dtype, "float32")
        how = {"path": path, "what": self.what, "device": self.device}
        for part, own, dtype in zip(parts, states, dtypes, strict=True):
            load_state(part, own, dtype=dtype, **how)
        return parts


def vision_name(name: str) -> str:
    """The name that transformers' BLIP gives to a weight of the published vision part (without `visual_encoder.`)."""
    for pattern, replacement in _VISION_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _sizes(state: dict[str, Tensor], layers: str, inner: str, width: int) -> dict[str, Any]:
    """What both configurations say: how wide and deep a part is, whose layers' names begin with `layers`."""
    return {
        "hidden_size": width,
        "intermediate_size": len(state[f"{layers}0.{inner}"]),
        "num_hidden_layers": 1 + max(int(name.split(".")[2]) for name in state if name.startswith(layers)),
        "num_attention_heads": width // HEAD_CHANNELS,
        "hidden_act": "gelu",
    }


def _vision_sizes(state: dict[str, Tensor]) -> dict[str, Any]:
    width, _, patch, _ = state["embeddings.patch_embedding.weight"].shape
    side = patch * math.isqrt(state["embeddings.position_embedding"].shape[1] - 1)
    own = {"image_size": side, "patch_size": patch, "layer_norm_eps": 1e-6}
    return _sizes(state, "encoder.layers.", "mlp.fc1.weight", width) | own


def _text_sizes(state: dict[str, Tensor]) -> dict[str, Any]:
    vocabulary, width = state["embeddings.word_embeddings.weight"].shape
    return _sizes(state, "encoder.layer.", "intermediate.dense.weight", width) | {
        "vocab_size": vocabulary,
        "encoder_hidden_size": state["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        "max_position_embeddings": len(state["embeddings.position_embeddings.weight"]),
        "layer_norm_eps": 1e-12,
        "is_decoder": True,  # so that there is cross-attention; what reads is bidirectional all the same
        "bos_token_id": None,
        "sep_token_id": None,
    }
