"""A family of models: how its media, prompts, times and LoRA files are made, known without its network.

What is written here is what most families do. Each is one subclass, of `base.Denoiser`, in one file, which owns every
quirk of the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from diffpo.core.process import NoiseProcess, Time
from diffpo.core.segments import causal_frames
from diffpo.errors import UserError
from diffpo.media.footage import FrameRule
from diffpo.models.asked import Asked
from diffpo.models.peft_folder import load_peft_folder, save_peft_folder
from diffpo.models.user_adapter import TextAttention

if TYPE_CHECKING:
    from diffpo.models.base import Denoiser

LORA_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers calls an adapter's file."""


@dataclass(frozen=True)
class Width:
    """A size that other parts of a model give together and its network takes, found in their configurations."""

    what: str
    given: dict[str, str]
    """Part -> the key in its configuration, with dots between levels; several are added up."""
    taken: Callable[[Mapping[str, Any]], int]
    """What the network's configuration says."""


class Family(ABC):
    """What is known of a family without its network.

    Class methods get the rest of the model as `pipeline` (a diffusers pipeline without its network) and the network's
    configuration as `network`.
    """

    pipelines: ClassVar[tuple[str, ...]]
    """Names of the diffusers pipeline classes that this family reads."""
    hints: ClassVar[Mapping[str, str]] = {}
    """What to do with pipelines that hold a part of the model only, by their class."""
    components: ClassVar[tuple[str, ...]]
    """Names in such a pipeline of the networks that can be trained: `unet` or `transformer`, for most."""
    scheduler: ClassVar[str] = "scheduler"
    """Name in it of the scheduler that these networks were trained with."""
    unread: ClassVar[tuple[str, ...]] = ()
    """Parts of it, beside those that no family needs, that neither encode nor sample."""
    vae_file: ClassVar[str | None] = None
    """A file beside the parts that encodes media, where none of them does; `model.vae` says where else it lies."""
    vae_source: ClassVar[str] = ""
    """Hub id that has this file."""
    lora_targets: ClassVar[tuple[str, ...]] = ()
    """Modules that a LoRA adapts unless the config names others."""
    blocks: ClassVar[tuple[str, ...]]
    """Classes of the network's repeated blocks: what regional compilation compiles."""
    convolutional: ClassVar[bool] = False
    """Whether the network is one of convolutions over images `[b c h w]`, which may lie with their channels last."""
    patch: ClassVar[int] = 1
    """Latent sides must be divisible by this."""
    latent_channels: ClassVar[Width] = Width("latent channels", {"vae": "latent_channels"}, itemgetter("in_channels"))
    """What the VAE gives, and what the network takes."""
    widths: ClassVar[tuple[Width, ...]]
    """What must fit beside the latents' channels: the widths of the text."""
    most_frames: ClassVar[int | None] = 1
    """The longest clip that the family takes; None: any length that the frame rule allows."""
    usual_frames: ClassVar[int] = 1
    """Frames that are sampled where nothing is said."""
    fps: ClassVar[float | None] = None
    """Frames per second of the clips that the model was made for; None: it makes images."""
    sides: ClassVar[int] = 8
    """The pipeline's own check: sides in pixels must be divisible by this, whatever the VAE and the patch."""
    half: ClassVar[Literal["float16", "bfloat16"]] = "bfloat16"
    """The half precision that it samples best in."""
    whole_parts: ClassVar[tuple[str, ...]] = ()
    """Parts of the pipeline that sample in float32, whatever the dtype of the others."""
    text_attention: ClassVar[TextAttention | None] = None
    """Where the network attends to the text, beside which a user adapter stands; None: there is no adapter for it."""
    experts: ClassVar[dict[str, type[Denoiser]]] = {}
    """Families of the networks of a pipeline that has one for high and one for low noise, `high` and `low`."""
    token_limits: ClassVar[dict[str, int | None]] = {}
    """Tokens that the pipeline reads of a prompt, by its name for the tokenizer; others read the tokenizer's own.

    None: that tokenizer is given a part of the prompt, which is not counted."""

    @classmethod
    def reads(cls, index: Mapping[str, Any]) -> bool:
        """Whether this is the family of a pipeline, from its `model_index.json`."""
        return index.get("_class_name") in cls.pipelines

    @classmethod
    def unheard(cls, network: Mapping[str, Any]) -> tuple[str, ...]:
        """Beginnings of the names of parameters that change no answer, which are not trained.

        A last block may make something of the text that nothing reads. Data parallelism would wait for its gradients.
        """
        return ()

    @classmethod
    def check_index(cls, index: Mapping[str, Any]) -> None:
        """Refuse a pipeline's `model_index.json` that names no network, or is yet another model, with a `UserError`."""
        missing = [name for name in cls.components if not any(index.get(name) or ())]
        if missing:
            raise UserError(f"its model_index.json names no {missing[0]}, which is what would be trained")

    @staticmethod
    @abstractmethod
    def make_process(scheduler: Mapping[str, Any], time: Time) -> NoiseProcess:
        """Read the noise process out of a pipeline's scheduler configuration."""

    @classmethod
    def within(cls, process: NoiseProcess, index: Mapping[str, Any]) -> NoiseProcess:
        """Keep the times that the network is for, by its pipeline's `model_index.json`: all, but for experts."""
        return process

    @staticmethod
    @abstractmethod
    def encode_prompt(pipeline: Any, prompt: str, network: Mapping[str, Any]) -> dict[str, Tensor]:
        """Encode one prompt: `text` `[n d]`, and whatever else the family is told; there is no batch axis.

        A family that masks adds `mask` `[n]`, boolean, true where `text` holds a token. What is called neither that nor
        `pooled` comes back in `Condition.extra`, and has the same shape for every prompt, unless it is a second text,
        `NAME` `[m d]` with a mask `NAME_mask` `[m]`.
        """

    @classmethod
    def encode_prompts(
        cls, pipeline: Any, prompts: Sequence[str], network: Mapping[str, Any]
    ) -> list[dict[str, Tensor]]:
        """Encode several prompts, each as `encode_prompt` does: here one by one, as padding that others need may tell.

        A family whose texts are all padded to one length encodes them together.
        """
        return [cls.encode_prompt(pipeline, prompt, network) for prompt in prompts]

    @staticmethod
    def factors(vae: Mapping[str, Any]) -> tuple[int, int]:
        """Pixels per latent cell along a side, and frames per latent frame, from the VAE's configuration."""
        return 2 ** (len(vae["block_out_channels"]) - 1), 1

    @classmethod
    def multiple(cls, vae: Mapping[str, Any]) -> int:
        """What sides in pixels must be divisible by: a patch of latents, from the VAE's configuration."""
        return cls.factors(vae)[0] * cls.patch

    @classmethod
    def check_frames(cls, count: int, vae: Mapping[str, Any], network: Mapping[str, Any] | None = None) -> None:
        """Check a clip's length: one frame, and beyond that whole multiples of the VAE's temporal factor.

        Args:
            count: Frames.
            vae: The VAE's configuration.
            network: The network's, where it is to be trained on the clip; samplers round more than training can.

        Raises:
            UserError: The family takes no clips, or none of this length.
        """
        if cls.most_frames is not None and count > cls.most_frames:
            longest = "takes images" if cls.most_frames == 1 else f"takes at most {cls.most_frames} frames"
            raise UserError(f"a {cls.pipelines[0]} {longest}; it was given a clip of {count} frames")
        _, temporal = cls.factors(vae)
        if (count - 1) % temporal:
            shorter = count - (count - 1) % temporal
            raise UserError(
                f"a {cls.pipelines[0]} takes clips of k * {temporal} + 1 frames; it was given {count} frames. "
                f"The nearest lengths are {shorter} and {shorter + temporal}"
            )

    @classmethod
    def frame_rule(cls, vae: Mapping[str, Any], network: Mapping[str, Any]) -> FrameRule:
        """Say which clips it is trained on, from the configurations of its VAE and its network: see `check_frames`."""
        return FrameRule(cls.factors(vae)[1], cls.most_frames, cls.fps)

    @classmethod
    def latent_frames(cls, count: int, vae: Mapping[str, Any]) -> list[range]:
        """Say which frames of a clip of `count` frames each latent frame holds: here, as in a causal VAE."""
        return causal_frames(count, cls.factors(vae)[1])

    @staticmethod
    def open_vae(file: Path) -> nn.Module:
        """Load what encodes media out of `vae_file`, frozen, on the CPU in float32.

        Raises:
            UserError: It holds something else, or a library is missing.
        """
        raise NotImplementedError("only a family with a vae_file is asked")

    @staticmethod
    def encode_media(pipeline: Any, frames: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encode clips `[b 3 f h w]` in [-1, 1] to the moments of their posterior, normalised for the network.

        Returns:
            Mean and deviation, `[b c f' h' w']` float32 each; None for the latter where the VAE is deterministic, and
            of clips, of which the mode is trained on.
        """
        vae = pipeline.vae
        posterior = vae.encode(frames.squeeze(2)).latent_dist  # `check_frames` lets one frame through
        shift, scale = vae.config.shift_factor or 0.0, vae.config.scaling_factor
        mean, std = (x.float().unsqueeze(2) for x in (posterior.mean, posterior.std))
        return (mean - shift) * scale, std * scale

    @classmethod
    def pieces(cls, count: int) -> list[range]:
        """Which frames of a clip of `count` the VAE reads at a time: here all."""
        return [range(count)]

    @classmethod
    def encode_pieces(cls, pipeline: Any, pieces: Iterator[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Do what `encode_media` does, given the frames of `pieces` one piece after the other."""
        return cls.encode_media(pipeline, torch.cat([*pieces], dim=2))

    @classmethod
    def sampling(cls, asked: Asked) -> dict[str, Any]:
        """What the pipeline is told beside prompts and noise, by its names for it.

        Raises:
            UserError: It cannot do what is asked.
        """
        return asked.usual if cls.most_frames == 1 else asked.usual | {"num_frames": asked.frames}

    @classmethod
    def guided(cls, pipeline: Any, scale: float) -> AbstractContextManager[None]:
        """Tell a pipeline that samples its guidance, for as long, where `sampling` cannot: most calls take it."""
        return nullcontext()

    @classmethod
    def to_sampler(cls, latent: Tensor) -> Tensor:
        """Latents `[b c f h w]` as the pipeline holds them while it samples."""
        return latent.squeeze(2) if cls.most_frames == 1 else latent

    @classmethod
    def from_sampler(cls, held: Tensor, sizes: tuple[int, int, int]) -> Tensor:
        """What the pipeline holds while it samples as latents `[b c f h w]`, whose f, h and w are given."""
        return held.unsqueeze(2) if cls.most_frames == 1 else held

    @staticmethod
    def lora_file(folder: Path) -> Path:
        """Where an export holds its adapter."""
        return folder / LORA_FILE

    @staticmethod
    def save_lora(pipeline: Any, component: str, folder: Path, layers: dict[str, Tensor], config: dict) -> None:
        """Write an adapter as `pipe.load_lora_weights(folder)` reads it, or for PEFT where the pipeline reads none.

        Args:
            pipeline: The pipeline's class.
            component: The network's name in it.
            folder: Where the files go.
            layers: The adapter's tensors, named as in the network.
            config: What PEFT says of the adapter (rank, alpha, modules).
        """
        from diffusers.loaders.lora_base import LoraBaseMixin

        if not issubclass(pipeline, LoraBaseMixin):
            return save_peft_folder(folder, layers, config)
        said = {f"{component}_lora_layers": layers, f"{component}_lora_adapter_metadata": config}
        pipeline.save_lora_weights(folder, **said)

    @staticmethod
    def load_lora(network: Any, component: str, path: Path, adapter: str) -> None:
        """Read an adapter, diffusers' file or PEFT's folder, into a network, under the name `adapter`."""
        if path.is_dir():
            return load_peft_folder(network, path, adapter)
        network.load_lora_adapter(path.parent, weight_name=path.name, prefix=component, adapter_name=adapter)


def images_only(fn: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Run an image network `[b c h w]` on latents `[b c 1 h w]`."""
    assert z.shape[2] == 1, f"this family takes images; got {z.shape[2]} frames"
    return fn(z.squeeze(2)).unsqueeze(2)
