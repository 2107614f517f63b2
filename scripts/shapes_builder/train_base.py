"""Trains the base model of the shapes world: UNet and text encoder together, on cached latents.

Every scene carries both its captions ("a left of b", "b right of a") and one is drawn at each step; one caption in ten
is emptied, so that classifier-free guidance works. The loss is the plain epsilon loss at uniform times.

The text encoder first learns, from captions alone, to know at each colour and shape word the whole object and its place
in the picture. A UNet that has to teach it that through its own loss needs many times the steps: relations come last.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffpo.worlds.shapes.render import render_batch
from diffpo.worlds.shapes.scenes import COLORS, OPPOSITE, SHAPES
from shapes_builder.building import Plan, load_average, step_generator, train
from shapes_builder.models import make_scheduler, make_text_encoder, make_tokenizer, make_unet
from shapes_builder.sampling import BASE_STYLE, sample_scenes, sample_specs

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusionPipeline
    from transformers import CLIPTextModel, CLIPTokenizer

CAPTION_DROPOUT = 0.1


def make_base(seed: int) -> nn.ModuleDict:
    """The two networks that are trained together."""
    torch.manual_seed(seed)  # diffusers and transformers initialise from the global generator
    return nn.ModuleDict({"unet": make_unet(), "text_encoder": make_text_encoder()})


def pretrain_text(encoder: CLIPTextModel, seed: int, steps: int = 600, batch_size: int = 128) -> None:
    """Teach the text encoder to tell colour, shape and place of an object at each of the object's two words."""
    answers = {"color": list(COLORS), "shape": list(SHAPES), "place": list(OPPOSITE)}
    torch.manual_seed(seed + 3)
    heads = nn.ModuleDict({name: nn.Linear(encoder.config.hidden_size, len(words)) for name, words in answers.items()})
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], lr=1e-3)
    for step in range(steps):
        generator = step_generator(seed + 3, step)
        specs = sample_specs("train", batch_size, generator)
        specs = [spec.mirrored() if i % 2 else spec for i, spec in enumerate(specs)]
        states = encoder(tokens([spec.caption for spec in specs])).last_hidden_state
        loss = torch.zeros(())
        for turn in (0, 1):
            told = [spec if turn == 0 else spec.mirrored() for spec in specs]  # whose first object is meant
            # after the start token: a COLOR SHAPE RELATION(one word or two) a COLOR SHAPE
            word = [2 if turn == 0 else 5 + len(spec.relation.split()) for spec in specs]
            for offset in (0, 1):
                state = states[torch.arange(batch_size), torch.tensor(word) + offset]
                for name, words in answers.items():
                    right = [s.relation if name == "place" else getattr(s.first, name) for s in told]
                    loss = loss + F.cross_entropy(heads[name](state), torch.tensor([words.index(x) for x in right]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 100 == 0:
            print(f"text {step + 1}/{steps}  loss {loss.item():.4f}", flush=True)


def cache_latents(vae: AutoencoderKL, n: int, seed: int, work: Path, device: str) -> dict[str, Tensor]:
    """Encode `n` base-style scenes of the train split once.

    Returns:
        `latents [n 4 8 8]` (scaled, the posterior's mean: its spread is below a hundredth), `ids [n 2 l]` the tokens
        of both captions.
    """
    path = work / "latents.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    generator = step_generator(seed + 2, 0)
    specs = sample_specs("train", n, generator)
    scenes = sample_scenes(specs, generator, BASE_STYLE)
    latents = []
    for start in range(0, n, 64):
        images = (render_batch(scenes[start : start + 64]) * 2 - 1).to(device)
        with torch.no_grad():
            latents.append(vae.encode(images).latent_dist.mean.cpu() * vae.config.scaling_factor)
        if start % 3200 == 0:
            print(f"latents {start}/{n}", flush=True)
    ids = torch.stack([tokens([s.caption for s in specs]), tokens([s.mirrored().caption for s in specs])], dim=1)
    cache = {"latents": torch.cat(latents), "ids": ids}
    torch.save(cache, path)
    return cache


def tokens(captions: list[str]) -> Tensor:
    """Captions -> token ids, padded to the model's length, `[n l]`."""
    return torch.tensor(_tokenizer()(captions, padding="max_length", truncation=True).input_ids)


@lru_cache(maxsize=1)
def _tokenizer() -> CLIPTokenizer:
    return make_tokenizer()


def train_base(
    name: str, base: nn.ModuleDict, cache: dict[str, Tensor], plan: Plan, batch_size: int, work: Path, device: str
) -> None:
    """Train the two networks in place (or continue) until they hold their EMA weights; `name` names the files."""
    base = base.to(device, memory_format=torch.channels_last)
    scheduler = make_scheduler()
    empty = tokens([""])

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(cache["latents"]), (batch_size,), generator=generator)
        x0 = cache["latents"][rows]
        ids = cache["ids"][rows, torch.randint(2, (batch_size,), generator=generator)]
        dropped = torch.rand(batch_size, 1, generator=generator) < CAPTION_DROPOUT
        ids = torch.where(dropped, empty, ids)
        time = torch.randint(1000, (batch_size,), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        noised = scheduler.add_noise(x0, noise, time).to(device, memory_format=torch.channels_last)
        text = base["text_encoder"](ids.to(device)).last_hidden_state
        prediction = base["unet"](noised, time.to(device), text).sample
        return {"loss": (prediction - noise.to(device)).square().mean()}

    train(name, base, loss, plan, work)


def make_pipeline(vae: AutoencoderKL, name: str, work: Path) -> StableDiffusionPipeline:
    """The whole pipeline with the networks of the checkpoint `name` in `work`."""
    from diffusers import StableDiffusionPipeline

    base = make_base(0)
    load_average(name, base, work)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=base["text_encoder"].eval(),
        tokenizer=make_tokenizer(),
        unet=base["unet"].eval(),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
