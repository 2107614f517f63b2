"""Trains the VAE of the shapes world on rendered train-split scenes, drawn afresh at every step.

Loss: L1 + MSE, the same on the picture shrunk fourfold, and a tiny KL term. Objects count more than the plain
background, colour more than brightness: with equal weights the VAE draws gray shapes for a long time.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffpo.shapes.building import Plan, step_generator, train
from diffpo.shapes.models import make_vae
from diffpo.shapes.render import render_batch
from diffpo.shapes.scenes import BASE_STYLE, WIDE_STYLE, sample_scenes, sample_specs

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

KL_WEIGHT = 1e-5
SCALING_FACTOR = 0.18215  # as in Stable Diffusion 1.5: whoever forgets it notices


def train_vae(plan: Plan, batch_size: int, work: Path, device: str) -> AutoencoderKL:
    """Train (or continue), standardise the latents, return the VAE with its EMA weights."""
    torch.manual_seed(plan.seed)  # diffusers initialises from the global generator
    vae = make_vae().to(device, memory_format=torch.channels_last)

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        return reconstruction_loss(vae, training_images(batch_size, generator).to(device), generator)

    train("vae", vae, loss, plan, work)
    standardize(vae, device, plan.seed)
    return vae.eval()


def train_decoder(vae: AutoencoderKL, plan: Plan, batch_size: int, work: Path, device: str) -> AutoencoderKL:
    """Train (or continue) the decoder alone: better pictures from the same latents; the UNet need not wait."""
    vae = vae.to(device, memory_format=torch.channels_last)
    vae.requires_grad_(False)
    decoder = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}).requires_grad_(True)

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        return reconstruction_loss(vae, training_images(batch_size, generator).to(device), generator)

    train("decoder", decoder, loss, plan, work)
    return vae.eval()


def reconstruction_loss(vae: AutoencoderKL, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """The loss and its parts for images in [-1, 1], `[n 3 h w]`."""
    images = images.to(memory_format=torch.channels_last)
    posterior = vae.encode(images).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator).to(images.device)
    decoded = vae.decode(posterior.mean + posterior.std * noise).sample
    weight = _weight(images)
    fine = _distance(decoded, images, weight)
    coarse = _distance(F.avg_pool2d(decoded, 4), F.avg_pool2d(images, 4), F.avg_pool2d(weight, 4))
    kl = posterior.kl().mean()
    return {"loss": fine + coarse + KL_WEIGHT * kl, "fine": fine, "coarse": coarse, "kl": kl}


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
def standardize(vae: AutoencoderKL, device: str, seed: int) -> None:
    """Give every latent channel mean 0 and the same deviation, 1 / SCALING_FACTOR, without changing what the VAE does.

    The encoder ends and the decoder begins with a 1x1 convolution: a scale and a shift per channel go into the one and
    come out of the other. Diffusion needs it, the VAE's training does not give it.
    """
    generator = step_generator(seed + 1, 0)
    scenes = sample_scenes(sample_specs("train", 512, generator), generator, BASE_STYLE)
    latents = torch.cat(
        [vae.encode((render_batch(scenes[i : i + 64]) * 2 - 1).to(device)).latent_dist.mean for i in range(0, 512, 64)]
    )
    mean, scale = latents.mean((0, 2, 3)), 1 / (SCALING_FACTOR * latents.std((0, 2, 3)))
    encode, decode = vae.quant_conv, vae.post_quant_conv
    n = len(mean)  # rows 0..n-1 are the means, the others the log variances
    encode.weight[:n] *= scale.view(-1, 1, 1, 1)
    encode.bias[:n] = (encode.bias[:n] - mean) * scale
    encode.bias[n:] += 2 * scale.log()
    decode.bias += (decode.weight[:, :, 0, 0] * mean).sum(1)
    decode.weight /= scale.view(1, -1, 1, 1)
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
