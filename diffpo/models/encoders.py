"""VAE and text encoders: pixels to latent moments, a prompt to text states. Both are functions of one row.

Training never holds these: their results are cached (or made row by row, when the cache is off, by the very same
functions).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffpo.compat import ensure_torchvision
from diffpo.disk import weights

ensure_torchvision()

from diffusers import AutoencoderKL  # noqa: E402

from diffpo.errors import UserError  # noqa: E402
from diffpo.models.base import Denoiser  # noqa: E402
from diffpo.models.load import BaseModel, find_base  # noqa: E402
from diffpo.models.tuning import DTYPES, Tuning  # noqa: E402


class Encoders:
    """A base model's VAE and text encoders, frozen."""

    def __init__(self, pipeline: Any, family: type[Denoiser], fingerprint: str):
        """Wrap a diffusers pipeline that was loaded without its denoiser."""
        self.pipeline, self.family, self.fingerprint = pipeline, family, fingerprint
        self.multiple = pipeline.vae_scale_factor * family.multiple

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode one image to the moments of its posterior, shifted and scaled as the denoiser expects latents.

        Args:
            pixels: `[3 h w]` in [-1, 1].

        Returns:
            Mean and standard deviation, each `[c 1 h/8 w/8]` float32 on the CPU.
        """
        vae = self.pipeline.vae
        posterior = vae.encode(pixels[None].to(vae.device, vae.dtype)).latent_dist
        shift, scale = vae.config.shift_factor or 0.0, vae.config.scaling_factor
        mean, std = (posterior.mean.float() - shift) * scale, posterior.std.float() * scale
        return mean[0].unsqueeze(1).cpu(), std[0].unsqueeze(1).cpu()

    @torch.no_grad()
    def encode_prompt(self, prompt: str) -> dict[str, Tensor]:
        """Encode one prompt to what its family's denoiser is told, float32 on the CPU, without a batch axis."""
        return {name: x.float().cpu() for name, x in self.family.encode_prompt(self.pipeline, prompt).items()}

    def count_cut(self, prompts: Sequence[str]) -> dict[int, int]:
        """Count the prompts that are longer than a text encoder reads: tokens that it reads -> prompts cut there."""
        cut: dict[int, set[int]] = {}
        for name, tokenizer in self.pipeline.components.items():
            if name.startswith("tokenizer") and tokenizer is not None:
                limit = self.family.token_limits.get(name, tokenizer.model_max_length)
                tokens = tokenizer(list(prompts), verbose=False).input_ids
                cut.setdefault(limit, set()).update(i for i, ids in enumerate(tokens) if len(ids) > limit)
        return {limit: len(rows) for limit, rows in cut.items()}

    @contextmanager
    def placed(self, device: torch.device | str, dtype: torch.dtype) -> Iterator[None]:
        """Move to `device`, in a dtype that holds both their own and `dtype`, and back: nothing is rounded."""
        parts = [part for part in self.pipeline.components.values() if isinstance(part, torch.nn.Module)]
        before = [(part.device, part.dtype) for part in parts]
        try:
            for part in parts:
                part.to(device, torch.promote_types(part.dtype, dtype))
            yield
        finally:
            for part, (home, own) in zip(parts, before, strict=True):
                part.to(home, own)

    def with_denoiser(self, network: torch.nn.Module) -> Any:
        """Put a network of the family beside the encoders: a pipeline that draws images."""
        parts = self.pipeline.components
        flags = {k: v for k, v in self.pipeline.config.items() if k not in parts and not k.startswith("_")}
        return type(self.pipeline)(**flags, **parts | {self.family.component: network})


def load_encoders(tuning: Tuning, device: torch.device | str) -> Encoders:
    """Load everything of the base model but its denoiser, frozen, in `tuning.encoder_dtype`.

    Raises:
        UserError: Files are missing, broken, or of another kind.
    """
    base = find_base(tuning.path)
    parts: dict[str, Any] = {base.family.component: None}
    if "safety_checker" in base.index:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    dtype = DTYPES[tuning.encoder_dtype]
    vae_folder = None if tuning.vae is None else weights.locate(tuning.vae, what="a VAE", fetch=_fetch_vae).path
    try:
        if vae_folder is not None:
            parts["vae"] = AutoencoderKL.from_pretrained(vae_folder, dtype=dtype)
        pipeline = base.pipeline_class.from_pretrained(base.folder, dtype=dtype, **parts).to(device)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot load the VAE and text encoders of {vae_folder or base.folder}: {error}") from error
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    return Encoders(pipeline, base.family, fingerprint(base, vae_folder, tuning.encoder_dtype))


def _fetch_vae(repo: str) -> Path:
    return weights.snapshot(repo, what="a VAE", patterns=("*.json", "*.safetensors"), probe="config.json")


def fingerprint(base: BaseModel, vae: Path | None, dtype: str) -> str:
    """Identify the files that decide an encoding by their content, and the dtype that it is made in."""
    wanted = ("text_encoder", "tokenizer", "vae")
    parts = {p.name: p for p in sorted(base.folder.iterdir()) if p.is_dir() and p.name.startswith(wanted)}
    if vae is not None:
        parts["vae"] = vae
    identity = [dtype, *(f"{name} {weights.fingerprint(part)}" for name, part in parts.items())]
    return hashlib.blake2b("\n".join(identity).encode(), digest_size=16).hexdigest()
