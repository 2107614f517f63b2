"""A real encoder, small enough to run hundreds of times in a test."""

from __future__ import annotations

import os
import signal

import torch

from diffpo.compat import ensure_torchvision
from diffpo.media.footage import FrameRule

ensure_torchvision()
from diffusers import AutoencoderKL  # noqa: E402

IMAGES = FrameRule()


class TinyEncoder:
    """An untrained VAE of factor 4, and letters embedded one by one."""

    def __init__(self, fingerprint: str = "tiny", kill_at: int | None = None, masked: bool = True, rule=IMAGES):
        """Build it; `kill_at` is the image at which the process kills itself."""
        state = torch.random.get_rng_state()
        torch.manual_seed(0)
        self.vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3,
            block_out_channels=[8, 8, 8],
            norm_num_groups=4,
            latent_channels=4,
        ).eval()
        self.letters = torch.randn(256, 6)
        torch.random.set_rng_state(state)
        self.fingerprint, self.multiple, self.rule = fingerprint, 4, rule
        self.vae_fingerprint = "tiny VAE"
        self.kill_at, self.masked = kill_at, masked
        self.images = self.prompts = 0
        self.batches, self.usual_batch = [], 1

    @torch.no_grad()
    def encode_media(self, frames):
        if self.images == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.images += 1
        posterior = self.vae.encode(frames.float().div(127.5).sub(1.0).transpose(0, 1)).latent_dist
        return posterior.mean.transpose(0, 1), posterior.std.transpose(0, 1)

    def start_media(self, frames):
        self.images += len(frames)
        self.batches.append(len(frames))
        with torch.no_grad():
            pixels = torch.cat([x.float().div(127.5).sub(1.0).transpose(0, 1) for x in frames])
            posterior = self.vae.encode(pixels).latent_dist
        return lambda: [(mean[:, None], std[:, None]) for mean, std in zip(posterior.mean, posterior.std, strict=True)]

    def encode_prompts(self, prompts):
        return [self.encode_prompt(prompt) for prompt in prompts]

    def encode_prompt(self, prompt):
        self.prompts += 1
        letters = list(b"<" + prompt.encode())
        if not self.masked:
            letters = (letters + [0] * 16)[:16]
        states = {"text": self.letters[letters], "pooled": self.letters[letters].mean(0)}
        if self.masked:
            states["mask"] = torch.ones(len(letters), dtype=torch.bool)
        return states

    def count_cut(self, prompts):
        return {16: sum(len(prompt.encode()) + 1 > 16 for prompt in prompts) if not self.masked else 0}
