"""A model by its configurations: its network on the meta device, and the shapes of what it is given. No weight is read.

A family's own functions are asked, on meta tensors: what a picture's latent looks like, and what a prompt's states do.
For a few well-known models the configurations are written here, so that nothing has to be downloaded first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as meta_config
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from diffpo.core.types import Condition
from diffpo.disk.weights import BROKEN, EMBEDDED, reason
from diffpo.errors import UserError
from diffpo.models import FAMILIES, Denoiser
from diffpo.models.bases import UNUSED, BaseModel
from diffpo.models.finding import NETWORKS, named_parts
from diffpo.models.load import equip, first_dtype, frozen_dtype
from diffpo.models.reference import Reference
from diffpo.models.tuning import Tuning

DDPM = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon"}
CAPTION = (
    "a lighthouse on a cliff in a storm, oil painting, with gulls above it and a small boat that comes home at dusk"
)
"""As long as captions usually are: some families' texts are as long as the caption."""
SD15: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD35_MEDIUM: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}


@dataclass(frozen=True, kw_only=True)
class Known:
    """A published model whose sizes are written here."""

    family: str
    """Key of `FAMILIES`."""
    network: str
    """Class of its network in diffusers."""
    config: Mapping[str, Any]
    """The network's configuration, where it differs from the class's defaults."""
    channels: int
    """Of latents, which have an eighth of the pixels a side."""
    text: tuple[int, int]
    """Number and width of a prompt's text states."""
    pooled: int | None = None
    """Width of the pooled state, for the families that use one."""
    scheduler: Mapping[str, Any] = field(default_factory=lambda: DDPM)
    """Configuration of the pipeline's scheduler."""

    def make(self) -> nn.Module:
        """Make the network on the default device, in the default dtype."""
        import diffusers

        return getattr(diffusers, self.network)(**self.config)

    def condition(self, rows: int = 1) -> Condition:
        """What the network is told of some images, on the meta device."""
        pooled = None if self.pooled is None else torch.empty(rows, self.pooled, device="meta")
        size = torch.empty(rows, 6, dtype=torch.long, device="meta")
        return Condition(torch.empty(rows, *self.text, device="meta"), pooled, extra={"size": size})


KNOWN = {
    "sd15": Known(family="unet", network="UNet2DConditionModel", config=SD15, channels=4, text=(77, 768)),
    "sdxl": Known(family="sdxl", network="UNet2DConditionModel", config=SDXL, channels=4, text=(77, 2048), pooled=1280),
    "sd35m": Known(  # 77 states of the CLIP encoders, then 256 of T5
        family="sd3",
        network="SD3Transformer2DModel",
        config=SD35_MEDIUM,
        channels=16,
        text=(333, 4096),
        pooled=2048,
        scheduler={"shift": 3.0},
    ),
}
"""By a short name."""
PUBLISHED = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd15",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "stabilityai/stable-diffusion-3.5-medium": "sd35m",
}
"""Hub ids of known models."""


@dataclass(frozen=True, kw_only=True)
class Outline:
    """All that decides what training a model takes, but for the settings."""

    family: type[Denoiser]
    make: Callable[[], Any]
    """Makes the network on the default device, in the default dtype."""
    scheduler: Mapping[str, Any]
    """Configuration of the pipeline's scheduler."""
    index: Mapping[str, Any]
    """The pipeline's `model_index.json`."""
    latent: tuple[int, ...]
    """Channels, frames, height and width of a latent."""
    cond: Condition
    """What the network is told of one image, on the meta device; masks are real, and true."""
    told: str
    """Where the sizes come from, for people."""


@torch.no_grad()
def outline(tuning: Tuning, size: tuple[int, int], frames: int) -> Outline:
    """Draw the outline of a model.

    Args:
        tuning: Names the model; only configurations are read of it.
        size: Height and width in pixels.
        frames: Of a clip; an image has one.

    Raises:
        UserError: Its configurations are neither on this disk nor known, or its family tells no shape of them.
    """
    if (name := PUBLISHED.get(tuning.path)) is not None and cached(tuning.path) is None:
        return of_known(KNOWN[name], size, f"the known sizes of {tuning.path}, of which nothing is on this disk")
    base = replace(tuning, path=str(on_this_disk(tuning.path))).find_trained()
    pipeline = sketch(base)
    try:
        latent = base.family.encode_media(pipeline, torch.empty(1, 3, frames, *size, device="meta"))[0]
        with looking():
            states = base.family.encode_prompt(pipeline, CAPTION, base.config(base.component))
    except (NotImplementedError, *BROKEN) as error:
        raise UserError(f"the shapes of a {base.pipeline} cannot be told without weights: {error}") from error
    return Outline(
        family=base.family,
        make=lambda: base.network_class.from_config(base.config(base.component)),
        scheduler=base.scheduler(tuning.prediction),
        index=base.index,
        latent=tuple(latent.shape[1:]),
        cond=as_told(states),
        told=f"the configurations in {base.folder}",
    )


def of_known(known: Known, size: tuple[int, int], told: str) -> Outline:
    """Draw the outline of a known model."""
    return Outline(
        family=FAMILIES[known.family],
        make=known.make,
        scheduler=known.scheduler,
        index={},
        latent=(known.channels, 1, size[0] // 8, size[1] // 8),
        cond=known.condition(),
        told=told,
    )


class Staying(TorchFunctionMode):
    """Tokens and masks stay on the CPU, where pipelines look at them, until they meet what is on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.to and args[0].device.type == "cpu" and not args[0].is_floating_point():
            dtypes = [x for x in (*args[1:], *kwargs.values()) if isinstance(x, torch.dtype)]
            return args[0].type(dtypes[0]) if dtypes else args[0]
        if func is Tensor.__bool__ and args[0].device.type == "meta":
            return True  # such as whether all of a mask is true
        met = any(isinstance(x, Tensor) and x.device.type == "meta" for x in tree_leaves((args, kwargs)))
        if met and func is not Tensor.__getitem__:
            args, kwargs = tree_map_only(Tensor, _without_numbers, (args, kwargs))
        return func(*args, **kwargs)


def _without_numbers(x: Tensor) -> Tensor:
    return x if x.device.type == "meta" else torch.empty_like(x, device="meta")


@contextmanager
def looking() -> Iterator[None]:
    """Let what looks at numbers on the meta device see true ones, for a while."""
    with Staying(), meta_config.patch(meta_nonzero_assume_all_nonzero=True):
        yield


def as_told(states: Mapping[str, Tensor]) -> Condition:
    """Make a prompt's states a condition of one row, with the sizes that the cache adds."""
    rows = {name: x[None] for name, x in states.items()}
    rows = {name: torch.ones(x.shape, dtype=torch.bool) if x.dtype == torch.bool else x for name, x in rows.items()}
    text, pooled, mask = rows.pop("text"), rows.pop("pooled", None), rows.pop("mask", None)
    return Condition(text, pooled, mask, extra=rows | {"size": torch.empty(1, 6, dtype=torch.long, device="meta")})


def cached(repo: str) -> Path | None:
    """The folder of what of a Hub repository lies in the local cache, if its index does."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
    return folder if (folder / "model_index.json").is_file() else None


def on_this_disk(path: str) -> str | Path:
    """Where a model's configurations are, without asking the Hub.

    Raises:
        UserError: They are not here.
    """
    if Path(path).expanduser().exists() or path in EMBEDDED or path.count("/") != 1 or path.startswith((".", "~")):
        return path
    if (folder := cached(path)) is None:
        raise UserError(
            f"the configurations of {path} are not on this disk, and its sizes are not known (known are "
            f"{', '.join(PUBLISHED)}). Fetch them without weights: hf download {path} --include '*.json' '*.txt' "
            "'*.model', or give model.path=FOLDER"
        )
    return folder


def sketch(base: BaseModel) -> Any:
    """A model's pipeline without its network: encoders on the meta device, tokenizers as they are.

    Raises:
        UserError: Files are missing or broken.
    """
    import diffusers
    import transformers

    parts: dict[str, Any] = dict.fromkeys(name for name in base.index if name in (*NETWORKS, *UNUSED))
    try:
        for name in named_parts(base.index):
            library, kind = base.index[name][:2]
            if name in (*parts, "safety_checker"):
                parts[name] = None
            elif library == "transformers" and issubclass(getattr(transformers, kind), torch.nn.Module):
                config = transformers.AutoConfig.from_pretrained(base.part(name), trust_remote_code=False)
                with torch.device("meta"):
                    parts[name] = getattr(transformers, kind)(config)
            elif library == "transformers":
                made = getattr(transformers, kind)
                parts[name] = made.from_pretrained(base.part(name), trust_remote_code=False)
            elif isinstance(found := getattr(diffusers, kind, None), type) and issubclass(found, torch.nn.Module):
                with torch.device("meta"):
                    parts[name] = found.from_config(base.config(name))
            elif found is not None:
                parts[name] = found.from_pretrained(base.part(name), trust_remote_code=False)
    except BROKEN as error:
        raise UserError(f"cannot read the configurations of {base.folder}: {reason(error)}") from error
    if "safety_checker" in base.index:
        parts |= {"safety_checker": None, "requires_safety_checker": False}
    return getattr(diffusers, base.pipeline)(**parts)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make new floating tensors have `dtype` for a while."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def assemble(
    drawn: Outline,
    tuning: Tuning,
    dtype: torch.dtype,
    device: torch.device | str = "meta",
    autocast: torch.dtype | None = None,
) -> tuple[Denoiser, Reference]:
    """Make policy and reference as `load.load` does, with random weights made on `device`, or with none on meta.

    Args:
        drawn: What to make.
        tuning: What of it is trained.
        dtype: Of trained weights.
        device: Where it is made.
        autocast: What autocast makes of products; None: there is no autocast.
    """
    family, first = drawn.family, first_dtype(tuning, dtype)
    with default_dtype(first), torch.device(device):
        network: Any = drawn.make()
    for x in (*network.parameters(), *network.buffers()):  # tables made by numpy know no default
        x.data = x.data.to(device, first if x.is_floating_point() else x.dtype)
    process = family.within(family.make_process(dict(drawn.scheduler), tuning.time), drawn.index)
    equip(network, tuning, family, dtype, None, device, autocast)
    policy = family(network, process, 1.0 if tuning.guidance is None else tuning.guidance)
    policy.network.train()
    return policy, tuning.reference(policy, frozen_dtype(tuning, dtype), autocast)
