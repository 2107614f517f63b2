"""Trains the VAE of the moving world on rendered train-split clips, drawn afresh at every step.

The loss is that of the shapes world's VAE, frame by frame. In the second round the decoder sees latents with a tenth of
their own deviation in noise: so much a transformer may leave in them.

diffusers runs a Wan VAE frame group by frame group, with a cache between them. `encode` and `decode` here run it on the
whole clip at once, which is the same function (a test compares them) and nearly twice as fast in training.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING

import torch
from shapes_builder.building import Plan, step_generator, train
from shapes_builder.train_vae import reconstruction_terms
from torch import Tensor, nn

from diffpo.worlds.moving.render import render_batch
from moving_builder.models import make_vae
from moving_builder.sampling import BASE_STYLE, WIDE_STYLE, sample_clips, sample_specs

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

KL_WEIGHT = 1e-3  # of the mean over the latents' elements
DECODER_NOISE = 0.1  # of each channel's deviation
MEASURED = 512  # clips from which the latents' statistics are taken
POSTERIOR_STD = 0.03  # of each channel's deviation, in the finished VAE


def train_vae(first: Plan, second: Plan, batch_size: int, work: Path, device: str) -> AutoencoderKLWan:
    """Train (or continue) in two rounds, decorrelate the latents after each, return the VAE with its EMA weights.

    The first round has no noise but the posterior's own: while the channels are nearly copies of each other, noise in
    each of them would hide all that tells them apart, which is where shapes are.
    """
    torch.manual_seed(first.seed)  # diffusers initialises from the global generator
    vae = channels_last(make_vae().to(device))
    run_at_once(vae)
    for name, plan, noise, floor in (("vae", first, 0.0, 0.0), ("vae2", second, DECODER_NOISE, DECODER_NOISE**2)):
        train(name, vae, partial(_loss, vae, batch_size, noise, device), plan, work)
        decorrelate(vae, device, plan.seed, floor)
        channels_last(vae)
    return plain(vae).eval()


def _loss(
    vae: AutoencoderKLWan, batch_size: int, noise: float, device: str, generator: torch.Generator
) -> dict[str, Tensor]:
    clips = training_clips(batch_size, generator).to(device, memory_format=torch.channels_last_3d)
    mean, log_variance = encode(vae, clips).chunk(2, dim=1)
    variance = log_variance.clamp(-20, 10).exp()
    kl = 0.5 * (mean.square() + variance - 1 - log_variance).mean()
    spread = noise * mean.detach().std(dim=(0, 2, 3, 4), keepdim=True)
    drawn = torch.randn(mean.shape, generator=generator).to(device)
    decoded = decode(vae, mean + (variance + spread.square()).sqrt() * drawn)
    terms = reconstruction_terms(frames(decoded), frames(clips))
    return {"loss": terms["fine"] + terms["coarse"] + KL_WEIGHT * kl, **terms, "kl": kl}


def training_clips(n: int, generator: torch.Generator) -> Tensor:
    """Clips of the train split in [-1, 1], `[n 3 9 32 32]`: half in the base's style, half in a wider one."""
    half = n // 2
    clips = sample_clips(sample_specs("train", half, generator), generator, BASE_STYLE)
    clips += sample_clips(sample_specs("train", n - half, generator), generator, WIDE_STYLE)
    return render_batch(clips) * 2 - 1


def frames(clips: Tensor) -> Tensor:
    """`[n c f h w]` -> pictures `[n f c h w]` with the first two merged."""
    return clips.transpose(1, 2).flatten(0, 1)


@torch.no_grad()
def decorrelate(vae: AutoencoderKLWan, device: str, seed: int, floor: float) -> None:
    """Make the latents' channels nearly uncorrelated, and note each one's mean and deviation in the config.

    Training leaves channels that are nearly copies of each other, and what tells them apart would drown in diffusion's
    noise. The encoder ends and the decoder begins with a 1x1x1 convolution: a linear map of the channels goes into the
    one, its inverse into the other, so that what the VAE does to a clip stays the same.

    Args:
        vae: It runs at once; it is changed in place.
        device: Where it is.
        seed: Chooses the clips that are looked at.
        floor: Is added to the variance of each direction, in shares of a channel's: directions that vary less than the
            decoder's noise tell nothing, and are not to be blown up to the size of the others.
    """
    rows = measured_latents(vae, device, seed).double().movedim(1, -1).flatten(0, -2)
    deviation, n = rows.std(0), rows.shape[1]
    values, vectors = torch.linalg.eigh(torch.corrcoef(rows.T))
    print("correlation's eigenvalues", [round(value, 4) for value in values.tolist()], flush=True)
    forward = deviation[:, None] * ((vectors / (values + floor).sqrt()) @ vectors.T) / deviation
    encoder, decoder = vae.quant_conv, vae.post_quant_conv  # rows 0..n-1 of the encoder's are means, then log variances
    matrix = encoder.weight[:n].flatten(1).double()
    encoder.weight[:n] = (forward @ matrix).float().view_as(encoder.weight[:n])
    encoder.bias[:n] = (forward @ encoder.bias[:n].double()).float()
    encoder.weight[n:] = 0
    encoder.bias[n:] = 2 * (POSTERIOR_STD * (rows @ forward.T).std(0)).log().float()
    matrix = decoder.weight.flatten(1).double() @ torch.linalg.inv(forward)
    decoder.weight.copy_(matrix.float().view_as(decoder.weight))
    rows = rows @ forward.T
    vae.register_to_config(latents_mean=_rounded(rows.mean(0)), latents_std=_rounded(rows.std(0)))


@torch.no_grad()
def measured_latents(vae: AutoencoderKLWan, device: str, seed: int) -> Tensor:
    """Latents of base-style clips of the train split, `[n c 5 8 8]`, from which the statistics are taken."""
    generator = step_generator(seed + 1, 0)
    clips = sample_clips(sample_specs("train", MEASURED, generator), generator, BASE_STYLE)
    batches = (render_batch(clips[i : i + 32]) * 2 - 1 for i in range(0, len(clips), 32))
    return torch.cat([encode(vae, batch.to(device)).chunk(2, dim=1)[0] for batch in batches])


def statistics(vae: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the latents' channels, each `[c 1 1 1]`."""
    mean, deviation = (torch.tensor(v).view(-1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    return mean, deviation


def encode(vae: AutoencoderKLWan, clips: Tensor) -> Tensor:
    """The moments of whole clips, `[n 2c 5 8 8]`, for a VAE that runs at once."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

    return vae.quant_conv(vae.encoder(patchify(clips, vae.config.patch_size)))


def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Whole clips `[n 3 9 32 32]`, not clamped (so that every pixel has a gradient), for a VAE that runs at once."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    return unpatchify(vae.decoder(vae.post_quant_conv(latents), first_chunk=True), vae.config.patch_size)


def run_at_once(vae: AutoencoderKLWan) -> None:
    """Let the two layers that change the number of frames work on a whole clip; the others do already."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample

    for module in vae.modules():
        if isinstance(module, WanResample) and module.mode.endswith("3d"):
            module.forward = MethodType(_halve if module.mode == "downsample3d" else _double, module)


def plain(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """A VAE with the same weights and statistics that runs as diffusers runs it."""
    fresh = type(vae).from_config(vae.config)
    fresh.load_state_dict(vae.state_dict())
    return fresh


def channels_last(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Lay out the weights as the CPU's convolutions want them; in diffusers `to` cannot mix 4 and 5 dimensions."""
    for parameter in vae.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
        elif parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return vae


def _resample(module: nn.Module, x: Tensor) -> Tensor:
    pictures = module.resample(frames(x))
    return pictures.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


def _halve(module: nn.Module, x: Tensor, feat_cache: None = None, feat_idx: object = None) -> Tensor:
    """The first frame stays as it is, every later pair becomes one (with the frame before it in view)."""
    x = _resample(module, x)
    return torch.cat([x[:, :, :1], module.time_conv(x)], dim=2)


def _double(module: nn.Module, x: Tensor, feat_cache: None = None, feat_idx: object = None) -> Tensor:
    """The first frame stays as it is, every later one becomes two."""
    later = module.time_conv(x[:, :, 1:]).unflatten(1, (2, x.shape[1])).movedim(1, 3).flatten(2, 3)
    return _resample(module, torch.cat([x[:, :, :1], later], dim=2))


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]
