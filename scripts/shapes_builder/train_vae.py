"""Trains the VAE of the shapes world on rendered train-split scenes, drawn afresh at every step.

Loss: L1 + MSE, the same on the picture shrunk fourfold, and a tiny KL term. Objects count more than the plain
background, colour more than brightness: with equal weights the VAE draws gray shapes for a long time.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffpo.worlds.shapes.render import render_batch
from shapes_builder.building import Plan, step_generator, train
from shapes_builder.models import make_vae
from shapes_builder.sampling import BASE_STYLE, WIDE_STYLE, sample_scenes, sample_specs

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

KL_WEIGHT = 1e-5
DECODER_NOISE = 0.1  # of the scaled latents, in the decoder's own training
POSTERIOR_STD = 0.03  # of the scaled latents, whose own is 1
SCALING_FACTOR = 0.18215  # as in Stable Diffusion 1.5: whoever forgets it notices


def train_vae(plan: Plan, batch_size: int, work: Path, device: str) -> AutoencoderKL:
    """Train (or continue), whiten the latents, return the VAE with its EMA weights."""
    torch.manual_seed(plan.seed)  # diffusers initialises from the global generator
    vae = make_vae().to(device, memory_format=torch.channels_last)

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        images = training_images(batch_size, generator).to(device, memory_format=torch.channels_last)
        posterior = vae.encode(images).latent_dist
        kl = posterior.kl().mean()
        terms = reconstruction_loss(vae, images, posterior.mean, posterior.std, generator)
        return {"loss": terms["fine"] + terms["coarse"] + KL_WEIGHT * kl, **terms, "kl": kl}

    train("vae", vae, loss, plan, work)
    whiten(vae, device, plan.seed)
    return vae.eval()


def train_decoder(vae: AutoencoderKL, plan: Plan, batch_size: int, work: Path, device: str) -> AutoencoderKL:
    """Train (or continue) the decoder alone, on latents with as much noise as a UNet may leave in them."""
    vae = vae.to(device, memory_format=torch.channels_last)
    vae.requires_grad_(False)
    decoder = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}).requires_grad_(True)

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        images = training_images(batch_size, generator).to(device, memory_format=torch.channels_last)
        mean = vae.encode(images).latent_dist.mean
        terms = reconstruction_loss(vae, images, mean, torch.tensor(DECODER_NOISE / SCALING_FACTOR), generator)
        return {"loss": terms["fine"] + terms["coarse"], **terms}

    train("decoder", decoder, loss, plan, work)
    return vae.eval()


def reconstruction_loss(
    vae: AutoencoderKL, images: Tensor, mean: Tensor, std: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """How far pictures decoded from noisy latents are from the truth, in full size and shrunk.

    Args:
        vae: Whose decoder is asked.
        images: The truth in [-1, 1], `[n 3 h w]`.
        mean: Latents, unscaled, `[n 4 h/8 w/8]`.
        std: Deviation of the noise that is added to them; broadcasts.
        generator: Draws the noise.
    """
    noise = torch.randn(mean.shape, generator=generator).to(images.device)
    return reconstruction_terms(vae.decode(mean + std.to(images.device) * noise).sample, images)


def reconstruction_terms(decoded: Tensor, images: Tensor) -> dict[str, Tensor]:
    """How far decoded pictures `[n 3 h w]` are from the truth, in full size (`fine`) and shrunk (`coarse`)."""
    weight = _weight(images)
    fine = _distance(decoded, images, weight)
    return {"fine": fine, "coarse": _distance(*(F.avg_pool2d(x, 4) for x in (decoded, images, weight)))}


def training_images(n: int, generator: torch.Generator) -> Tensor:
    """Scenes of the train split in [-1, 1], `[n 3 64 64]`.

    Half are drawn as the base will see them, half with wider sizes and saturations, so that the decoder can also
    draw what an aligned (or an over-optimised) model asks for.
    """
    half = n // 2
    scenes = sample_scenes(sample_specs("train", half, generator), generator, BASE_STYLE)
    scenes += sample_scenes(sample_specs("train", n - half, generator), generator, WIDE_STYLE)
    return render_batch(scenes) * 2 - 1


@torch.no_grad()
def whiten(vae: AutoencoderKL, device: str, seed: int) -> None:
    """Give the latents mean 0 and covariance 1 / SCALING_FACTOR^2, without changing what the VAE does to a picture.

    The VAE's training leaves channels that are nearly copies of each other, and what tells them apart would drown in
    diffusion's noise. The encoder ends and the decoder begins with a 1x1 convolution: a linear map of the four channels
    goes into the one, its inverse into the other. The posterior's spread becomes POSTERIOR_STD everywhere.
    """
    generator = step_generator(seed + 1, 0)
    scenes = sample_scenes(sample_specs("train", 512, generator), generator, BASE_STYLE)
    posteriors = [
        vae.encode((render_batch(scenes[i : i + 64]) * 2 - 1).to(device)).latent_dist for i in range(0, 512, 64)
    ]
    rows = torch.cat([p.mean for p in posteriors]).double().permute(0, 2, 3, 1).flatten(0, 2)
    mean = rows.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(rows.T))
    forward = (
        (vectors / values.sqrt()) @ vectors.T / SCALING_FACTOR
    )  # symmetric: as close to the old channels as can be
    n = len(mean)
    encode, decode = vae.quant_conv, vae.post_quant_conv  # rows 0..n-1 of `encode` are means, the others log variances
    weight, bias = encode.weight[:n, :, 0, 0].double(), encode.bias[:n].double()
    encode.weight[:n, :, 0, 0] = (forward @ weight).float()
    encode.bias[:n] = (forward @ (bias - mean)).float()
    encode.weight[n:] = 0
    encode.bias[n:] = 2 * math.log(POSTERIOR_STD / SCALING_FACTOR)
    decode.bias += (decode.weight[:, :, 0, 0].double() @ mean).float()
    decode.weight[:, :, 0, 0] = (decode.weight[:, :, 0, 0].double() @ torch.linalg.inv(forward)).float()
    vae.register_to_config(scaling_factor=SCALING_FACTOR)


def _weight(images: Tensor) -> Tensor:
    """`[n 1 h w]`: 5 for the objects (a tenth of the picture) and the pixel around them, 1 for the rest."""
    chroma = images.amax(1, keepdim=True) - images.amin(1, keepdim=True)
    return 1 + 4 * F.max_pool2d((chroma > 0.2).float(), 3, stride=1, padding=1)


def _distance(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """L1 + MSE of the gray part and, counted four times, of what is left: without that the VAE learns colours last."""
    difference = a - b
    gray = difference.mean(1, keepdim=True)
    color = difference - gray
    return (weight * (_robust(gray) + 4 * _robust(color))).mean()


def _robust(x: Tensor) -> Tensor:
    return x.abs() + x.square()
