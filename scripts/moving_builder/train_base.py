"""Trains the base model of the moving world: transformer and text encoder together, on cached latents.

The loss is the plain flow-matching loss; times are logit-normal, shifted towards noise, where the motion is decided.
One caption in ten is emptied, so that classifier-free guidance works.

Wan's pipeline pads every caption with zeros to 512 tokens, to which the transformer attends without a mask. All these
zeros are one and the same key and value, so that in training one of them stands for all: its logit is raised by the
logarithm of their number. The number is drawn at each step: the model shall not mind how far a caption is padded.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from shapes_builder.building import Plan, load_average, step_generator, train
from torch import Tensor, nn

from diffpo.worlds.moving.render import render_batch
from moving_builder.models import (
    MAX_TOKENS,
    make_scheduler,
    make_text_encoder,
    make_tokenizer,
    make_transformer,
)
from moving_builder.sampling import BASE_STYLE, sample_clips, sample_specs, spoil
from moving_builder.train_vae import encode, run_at_once, statistics

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan, WanPipeline

CAPTION_DROPOUT = 0.1
TIME_SHIFT = 2.0
SHORT = 12  # tokens of a caption in training: no caption has more than 11, so that the last one is padding
LENGTHS = (SHORT, 32, 128, MAX_TOKENS)  # to which captions are padded, as far as the transformer can tell


def make_base(seed: int) -> nn.ModuleDict:
    """The two networks that are trained together."""
    torch.manual_seed(seed)  # diffusers and transformers initialise from the global generator
    return nn.ModuleDict({"transformer": make_transformer(), "text_encoder": make_text_encoder()})


@torch.no_grad()
def cache_latents(vae: AutoencoderKLWan, n: int, seed: int, work: Path, device: str) -> dict[str, Tensor]:
    """Encode `n` base-style clips of the train split once, with the faults that real clips have.

    Returns:
        `latents [n 8 5 8 8]`, the posterior's mean with mean 0 and deviation 1 in each channel; `ids [n 12]`, tokens.
    """
    path = work / "latents.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    run_at_once(vae.to(device))
    generator = step_generator(seed + 2, 0)
    specs = sample_specs("train", n, generator)
    clips = spoil(sample_clips(specs, generator, BASE_STYLE), generator)
    mean, deviation = statistics(vae)
    latents = []
    for start in range(0, n, 32):
        pictures = (render_batch(clips[start : start + 32]) * 2 - 1).to(device)
        latents.append((encode(vae, pictures).chunk(2, dim=1)[0].cpu() - mean) / deviation)
        if start % 3200 == 0:
            print(f"latents {start}/{n}", flush=True)
    cache = {"latents": torch.cat(latents), "ids": tokens([spec.caption for spec in specs])}
    torch.save(cache, path)
    return cache


def tokens(captions: list[str]) -> Tensor:
    """Captions -> token ids, padded to the training's length, `[n 12]`."""
    ids = torch.tensor(make_tokenizer()(captions, padding="max_length", max_length=SHORT).input_ids)
    assert ids.shape[1] == SHORT and not ids[:, -1].any(), "the last token must be padding"
    return ids


def train_base(
    base: nn.ModuleDict, cache: dict[str, Tensor], plan: Plan, batch_size: int, work: Path, device: str
) -> None:
    """Train the two networks in place (or continue) until they hold their EMA weights."""
    base = base.to(device)
    bias = pad_once(base["transformer"], device)
    transformer = torch.compile(base["transformer"])  # the same parameters; a quarter faster on a CPU
    empty = tokens([""])

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(cache["latents"]), (batch_size,), generator=generator)
        x0 = cache["latents"][rows]
        dropped = torch.rand(batch_size, 1, generator=generator) < CAPTION_DROPOUT
        ids = torch.where(dropped, empty, cache["ids"][rows]).to(device)
        length = LENGTHS[int(torch.randint(len(LENGTHS), (1,), generator=generator))]
        bias[..., -1] = math.log(length - SHORT + 1)
        t = torch.randn(batch_size, generator=generator).sigmoid()
        t = TIME_SHIFT * t / (1 + (TIME_SHIFT - 1) * t)
        noise = torch.randn(x0.shape, generator=generator)
        z = x0 + t.view(-1, 1, 1, 1, 1) * (noise - x0)
        mask = (ids > 0).long()
        text = base["text_encoder"](ids, mask).last_hidden_state * mask.unsqueeze(-1)
        prediction = transformer(z.to(device), 1000 * t.to(device), text, return_dict=False)[0]
        error = (prediction - (noise - x0).to(device)).square().flatten(1).mean(1)
        late = t.to(device) > 0.8
        return {"loss": error.mean(), "noisy": error[late].mean(), "clear": error[~late].mean()}

    train("base", base, loss, plan, work)


def pad_once(transformer: nn.Module, device: str) -> Tensor:
    """Add a bias to the logits of the attention to the text; returns it, `[1 1 1 12]`, to be set before each step."""
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor

    bias = torch.zeros(1, 1, 1, SHORT, device=device)

    class PadOnce(WanAttnProcessor):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
            return super().__call__(attn, hidden_states, encoder_hidden_states, bias, rotary_emb)

    for block in transformer.blocks:
        block.attn2.set_processor(PadOnce())
    return bias


def make_pipeline(vae: AutoencoderKLWan, work: Path) -> WanPipeline:
    """The whole pipeline with the networks of the checkpoint in `work`."""
    from diffusers import WanPipeline

    base = make_base(0)
    load_average("base", base, work)
    pipeline = WanPipeline(
        tokenizer=make_tokenizer(),
        text_encoder=base["text_encoder"].eval(),
        vae=vae,
        scheduler=make_scheduler(),
        transformer=base["transformer"].eval(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
