"""A model by its configurations: its network on the meta device, and the shapes of what it is given. No weight is read.

A family's own functions are asked, on meta tensors: what a picture's latent looks like, and what a prompt's states do.
Of a few well-known models (`known`) nothing has to be downloaded first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental import _config as meta_config
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from diffpo.core.types import Condition, Embedding
from diffpo.disk.weights import BROKEN, EMBEDDED, reason
from diffpo.errors import UserError
from diffpo.models import FAMILIES, Denoiser
from diffpo.models.bases import BaseModel
from diffpo.models.finding import NETWORKS, named_parts
from diffpo.models.known import KNOWN, PUBLISHED, Known
from diffpo.models.load import equip, first_dtype, frozen_dtype
from diffpo.models.reference import Reference
from diffpo.models.tuning import Tuning

CAPTION = (
    "a lighthouse on a cliff in a storm, oil painting, with gulls above it and a small boat that comes home at dusk"
)
"""As long as captions usually are: some families' texts are as long as the caption."""


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
    embedding: Embedding | None = None
    """What users' states are, for a network that is told the user."""

    def telling(self, embedding: Embedding, count: int) -> Outline:
        """The same model, told of users, each of whom has `count` states."""
        user = torch.empty(1, count, embedding.width, device="meta")
        return replace(self, embedding=embedding, cond=replace(self.cond, user=user))


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

    parts: dict[str, Any] = dict.fromkeys(name for name in base.index if name in (*NETWORKS, *base.left_out))
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
            else:
                parts[name] = found and found.from_pretrained(base.part(name), trust_remote_code=False)
    except BROKEN as error:
        raise UserError(f"cannot read the configurations of {base.folder}: {reason(error)}") from error
    if "safety_checker" in base.index:
        parts |= {"safety_checker": None, "requires_safety_checker": False}
    pipeline = getattr(diffusers, base.pipeline)(**parts)
    if base.family.vae_file is not None:
        pipeline.vae = base.family.open_vae(base.part("vae")).to("meta")
    return pipeline


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
    equip(network, tuning, family, dtype, drawn.embedding, device, autocast)
    policy = family(network, process, 1.0 if tuning.guidance is None else tuning.guidance)
    policy.network.train()
    return policy, tuning.reference(policy, frozen_dtype(tuning, dtype), autocast)
