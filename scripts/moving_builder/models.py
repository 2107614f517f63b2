"""The networks of the moving world: the classes of a Wan 2.1 pipeline, all small.

Heavy imports happen inside the functions, as in the shapes world's builder.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

from diffpo.worlds.moving.scenes import BACKGROUNDS, COLORS, DIRECTIONS, SHAPES, SPEEDS

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
    from transformers import T5TokenizerFast, UMT5EncoderModel

LATENT_CHANNELS, SPATIAL_FACTOR, TEMPORAL_FACTOR = 8, 4, 2
PATCH = 2  # pixels that the VAE takes for one
TEXT_WIDTH = 64
MAX_TOKENS = 512  # to which Wan's pipeline pads a prompt
SHORT_PADDING = 32  # to which the builder does, where it makes many clips: the model does not mind, and it is faster
FLOW_SHIFT = 3.0  # as Wan 2.1 for small pictures
WORDS = (*COLORS, *SHAPES, *DIRECTIONS, *filter(None, SPEEDS), *BACKGROUNDS, "a", "moving", "on", "background")


def make_vae() -> AutoencoderKLWan:
    """Causal, factor 4 in space and 2 in time: 3x9x32x32 -> 8x5x8x8. The latents' statistics are set after training.

    As in Wan 2.2's, patches of 2x2 pixels become channels first: on a CPU that is four times as fast.
    """
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=16,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],  # diffusers' spelling
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        patch_size=PATCH,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
        scale_factor_spatial=SPATIAL_FACTOR,
        scale_factor_temporal=TEMPORAL_FACTOR,
    )


def make_transformer() -> WanTransformer3DModel:
    """Predicts the flow on 8x5x8x8 latents, which are 80 tokens."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=384,
        num_layers=4,
        rope_max_seq_len=32,
    )


def make_text_encoder() -> UMT5EncoderModel:
    """Two layers, trained together with the transformer."""
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer = make_tokenizer()
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer),
            d_model=TEXT_WIDTH,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def make_scheduler() -> UniPCMultistepScheduler:
    """Wan 2.1's."""
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT)


def make_tokenizer() -> T5TokenizerFast:
    """T5's unigram model: every word of the world is one token, any other text is split into characters."""
    from transformers import T5TokenizerFast

    pieces = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_letters, *string.digits, *string.punctuation]
    vocabulary = [(piece, -10.0) for piece in pieces] + [(f"▁{word}", -1.0) for word in WORDS]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=SHORT_PADDING)
