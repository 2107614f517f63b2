"""The networks of the shapes world, all small, all plain diffusers and transformers classes.

Heavy imports happen inside the functions: `diffpo.worlds.shapes` must import fast.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from diffpo.worlds.shapes.scenes import BACKGROUNDS, COLORS, SHAPES

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

LATENT_CHANNELS, LATENT_SIZE, MAX_TOKENS, TEXT_WIDTH = 4, 8, 32, 128
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
WORDS = (*COLORS, *SHAPES, *BACKGROUNDS, "a", "on", "of", "left", "right", "above", "below", "background")


def make_vae() -> AutoencoderKL:
    """Factor 8: 3x64x64 -> 4x8x8. `scaling_factor` is set after training."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
    )


def make_unet() -> UNet2DConditionModel:
    """Predicts epsilon on 4x8x8 latents; cross-attention at every level."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(96, 112),
        layers_per_block=1,
        attention_head_dim=4,  # diffusers' name for the number of heads
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=16,
    )


def make_text_encoder() -> CLIPTextModel:
    """Two layers, trained together with the UNet: relations cannot be learned from a frozen random one."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**_text_settings(layers=2)))


def make_clip() -> CLIPModel:
    """Both towers small, pictures of 64x64 in patches of 8."""
    from transformers import CLIPConfig, CLIPModel

    vision = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    vision |= {"image_size": 64, "patch_size": 8, "hidden_act": "gelu"}
    return CLIPModel(CLIPConfig(projection_dim=128, text_config=_text_settings(layers=2), vision_config=vision))


def make_scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion 1.5."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def make_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level BPE with about 600 tokens: every word of the world is one, any other text is bytes."""
    from transformers import CLIPTokenizer

    vocabulary, merges = bpe()
    return CLIPTokenizer(
        vocab=dict(vocabulary),
        merges=list(merges),
        bos_token=BOS,
        eos_token=EOS,
        unk_token=EOS,
        pad_token=EOS,
        model_max_length=MAX_TOKENS,
    )


@lru_cache(maxsize=1)
def bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary and the merges, in order of priority.

    For each word the merges so far are applied and the rest is merged from the left. New merges come last, so they
    cannot change how earlier words are merged.
    """
    symbols = byte_symbols()
    vocabulary = symbols + [symbol + "</w>" for symbol in symbols]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = apply_merges([*word[:-1], word[-1] + "</w>"], merges)
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            vocabulary.append(parts[0] + parts[1])
            parts = apply_merges(parts, merges)
    vocabulary += [BOS, EOS]
    assert len(set(vocabulary)) == len(vocabulary)
    return {token: index for index, token in enumerate(vocabulary)}, merges


def apply_merges(parts: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Byte-pair encoding: merge the pair that comes first in `merges`, wherever it stands, until none is left."""
    rank = {pair: index for index, pair in enumerate(merges)}
    while True:
        pairs = [pair for pair in pairwise(parts) if pair in rank]
        if not pairs:
            return parts
        best = min(pairs, key=rank.__getitem__)
        merged: list[str] = []
        for part in parts:
            if merged and (merged[-1], part) == best:
                merged[-1] += part
            else:
                merged.append(part)
        parts = merged


def byte_symbols() -> list[str]:
    """GPT-2's and CLIP's 256 printable stand-ins for the bytes, in CLIP's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(code) for code in printable] + [chr(256 + i) for i in range(others)]


def _text_settings(layers: int) -> dict[str, object]:
    vocabulary = bpe()[0]
    return {
        "vocab_size": len(vocabulary),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS,
        "projection_dim": TEXT_WIDTH,
        "hidden_act": "gelu",
        "bos_token_id": vocabulary[BOS],
        "eos_token_id": vocabulary[EOS],
        "pad_token_id": vocabulary[EOS],
    }
