"""VAE and text encoders: frames to latent moments, a prompt to text states: each alone, or several together.

Training never holds these: their results are cached (or made row by row, when the cache is off). Alone, an encoding is
a function of its row to the bit. Together it is faster on a GPU, and agrees with that to 1e-4 in float32. What differs
between families stands in the families.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from diffpo.core.types import DTYPES
from diffpo.disk import weights
from diffpo.disk.files import hash_of
from diffpo.models.base import Denoiser
from diffpo.models.bases import BaseModel
from diffpo.models.finding import NETWORKS, named_parts
from diffpo.models.fitting import Fitting
from diffpo.models.pipelines import load_network, load_parts, part_dtype
from diffpo.models.tuning import Tuning

GPU_BATCH, MOST = 16, 2**16
"""Images or prompts that a GPU encodes together unless told, and that it tries at most."""


class Encoders:
    """A base model's VAE and text encoders, frozen, in `tuning.encoder_dtype`; they are loaded when first used."""

    def __init__(self, tuning: Tuning, device: torch.device | str):
        """Find the files; a `UserError` where some are missing, or the parts do not fit together."""
        self._tuning, self._device, self._base = tuning, device, tuning.find()
        self.family = self._base.family
        self.vae = self._base.config("vae")
        """The VAE's configuration."""
        self.fingerprint = fingerprint(self._base, tuning)
        self.vae_fingerprint = weights.fingerprint(self._base.part("vae"))
        self.multiple = self.family.multiple(self.vae)
        """Image sides in pixels must be divisible by this."""
        self._network = self._base.config(self._base.component)
        self.rule = self.family.frame_rule(self.vae, self._network)
        """Which clips it takes."""

    @cached_property
    def pipeline(self) -> Any:
        """The diffusers pipeline, without its denoiser; a `UserError` where files are broken."""
        base, dtype = self._base, DTYPES[self._tuning.encoder_dtype]
        parts = dict.fromkeys(name for name in base.index if name in (*NETWORKS, *base.left_out))
        if "vae" in base.replaced and self.family.vae_file is None:
            parts["vae"] = load_network(base.part("vae"), part_dtype(base.index, "vae", dtype))
        pipeline = load_parts(base.folder, dtype, parts, told="cannot load the VAE and text encoders of")
        if self._tuning.prediction is not None:
            scheduler = type(getattr(pipeline, self.family.scheduler))
            setattr(pipeline, self.family.scheduler, scheduler.from_config(base.scheduler(self._tuning.prediction)))
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False).eval()
        if self.family.vae_file is not None:  # no part of the pipeline, which neither moves it nor samples with it
            pipeline.vae = self.family.open_vae(base.part("vae")).to(self._device)
        return pipeline.to(self._device)

    @torch.no_grad()
    def encode_media(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Encode frames to the moments of their posterior, normalised for the denoiser.

        Args:
            frames: `[3 f h w]`: uint8, or floats in [-1, 1].

        Returns:
            Mean and standard deviation, each `[c f' h' w']` float32 on the CPU; a deterministic VAE's deviation is 0.

        Raises:
            UserError: The family takes no clips of this length.
        """
        self.family.check_frames(frames.shape[1], self.vae, self._network)
        mean, std = encode_frames(self.family, self.pipeline, frames[None])
        std = torch.zeros_like(mean) if std is None else std
        return mean[0].float().cpu(), std[0].float().cpu()

    @property
    def usual_batch(self) -> int:
        """How many images or prompts are encoded together unless told."""
        return GPU_BATCH if self._on_gpu else 1

    @property
    def _on_gpu(self) -> bool:
        return torch.device(self._device).type == "cuda"

    @torch.no_grad()
    def start_media(self, frames: Sequence[Tensor]) -> Callable[[], list[tuple[Tensor, Tensor]]]:
        """Begin to encode several images or clips of one shape together, fewer where memory does not hold them all.

        Args:
            frames: Of each, see `encode_media`.

        Returns:
            A function that waits until the device is done, and returns for each what `encode_media` does.
        """
        begun = self._fitting.run(self._begin, frames)

        def wait() -> list[tuple[Tensor, Tensor]]:
            for _, _, done in begun:
                if done is not None:
                    done.synchronize()
            return [pair for mean, std, _ in begun for pair in zip(mean, std, strict=True)]

        return wait

    @cached_property
    def _fitting(self) -> Fitting:
        return Fitting(MOST)

    def _begin(self, frames: Sequence[Tensor]) -> list[tuple[Tensor, Tensor, torch.cuda.Event | None]]:
        """Begin to encode one batch: on a GPU its moments are on their way to the CPU, and arrive with the event."""
        self.family.check_frames(frames[0].shape[1], self.vae, self._network)
        together = torch.stack(list(frames))
        together = together.pin_memory() if self._on_gpu else together
        mean, std = encode_frames(self.family, self.pipeline, together)
        std = torch.zeros_like(mean) if std is None else std
        mean, std = (x.float().to("cpu", non_blocking=True) for x in (mean, std))
        if not self._on_gpu:
            return [(mean, std, None)]
        done = torch.cuda.Event()
        done.record()
        return [(mean, std, done)]

    def latent_frames(self, count: int) -> list[range]:
        """Say which frames of a clip of `count` frames each latent frame holds."""
        return self.family.latent_frames(count, self.vae)

    @torch.no_grad()
    def encode_prompt(self, prompt: str) -> dict[str, Tensor]:
        """Encode one prompt to what its family's denoiser is told, on the CPU, without a batch axis.

        Floating values are float32; masks stay boolean. The empty prompt follows `model.empty_text`.
        """
        return self._told(prompt, self.family.encode_prompt(self.pipeline, prompt, self._network))

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Encode several prompts together where their family does; see `encode_prompt`."""
        made = self._fitting.run(lambda some: self.family.encode_prompts(self.pipeline, some, self._network), prompts)
        return [self._told(prompt, states) for prompt, states in zip(prompts, made, strict=True)]

    def _told(self, prompt: str, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the denoiser is told of a prompt's states: on the CPU, in float32."""
        states = {name: x.float().cpu() if x.is_floating_point() else x.cpu() for name, x in states.items()}
        if not prompt and self._tuning.empty_text == "zeros":
            return {name: torch.zeros_like(x) if x.is_floating_point() else x for name, x in states.items()}
        return states

    def count_cut(self, prompts: Sequence[str]) -> dict[int, int]:
        """Count the prompts that are longer than a text encoder reads: tokens that it reads -> prompts cut there."""
        cut: dict[int, set[int]] = {}
        for name, part in self.pipeline.components.items():
            if "tokenizer" in name and part is not None:
                tokenizer = vars(part).get("tokenizer", part)  # a processor holds one
                limit = self.family.token_limits.get(name, tokenizer.model_max_length)
                if limit is None:
                    continue
                tokens = tokenizer(list(prompts), verbose=False).input_ids
                cut.setdefault(limit, set()).update(i for i, ids in enumerate(tokens) if len(ids) > limit)
        return {limit: len(rows) for limit, rows in cut.items()}

    @contextmanager
    def placed(self, device: torch.device | str, dtype: torch.dtype) -> Iterator[torch.dtype]:
        """Move to `device`, in a dtype that holds both their own and `dtype`, and back: nothing is rounded.

        What is given is that dtype: the one of all parts but those that a family keeps in float32.
        """
        parts = [part for part in self.pipeline.components.values() if isinstance(part, torch.nn.Module)]
        before = [(part.device, part.dtype) for part in parts]
        try:
            for part in parts:
                part.to(device, torch.promote_types(part.dtype, dtype))
            yield self._with(dtype)
        finally:
            for part, (home, own) in zip(parts, before, strict=True):
                part.to(home, own)

    def _with(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype that holds both theirs and another one."""
        return torch.promote_types(DTYPES[self._tuning.encoder_dtype], dtype)

    def with_denoiser(self, network: Any) -> Any:
        """Put a network of the family beside the encoders: a pipeline that makes images or clips."""
        parts = self.pipeline.components
        flags = {k: v for k, v in self.pipeline.config.items() if k not in parts and not k.startswith("_")}
        networks = {self._base.component: network}
        for name in named_parts(self._base.index):
            if name in NETWORKS and name not in networks:  # the other one of two experts, or stage B
                kind = network.dtype if self.family.experts else self._with(network.dtype)
                networks[name] = load_network(self._base.part(name), kind).to(network.device)
        return type(self.pipeline)(**flags, **parts | networks)


def encode_frames(family: type[Denoiser], pipeline: Any, frames: Tensor) -> tuple[Tensor, Tensor | None]:
    """Encode `[b 3 f h w]` as many frames at a time as the VAE reads; returns what `family.encode_media` does."""
    vae = pipeline.vae
    parts = (frames[:, :, part.start : part.stop] for part in family.pieces(frames.shape[2]))
    moved = (part.to(vae.device, non_blocking=True) for part in parts)
    return family.encode_pieces(pipeline, (_scaled(part).to(vae.dtype) for part in moved))


def _scaled(frames: Tensor) -> Tensor:
    """Bring pixels to [-1, 1]; floats are there already."""
    return frames if frames.is_floating_point() else frames.float().div_(127.5).sub_(1.0)


def fingerprint(base: BaseModel, tuning: Tuning) -> str:
    """Identify what decides an encoding: the content of the files, the dtype, and what the empty prompt becomes."""
    parts = (f"{name} {weights.fingerprint(base.part(name))}" for name in sorted(base.encoders))
    empty = [] if tuning.empty_text == "encoded" else [f"empty text {tuning.empty_text}"]
    identity = "\n".join([tuning.encoder_dtype, *parts, *empty])
    return hash_of(identity, 16)
