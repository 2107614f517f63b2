"""The files of a user adapter, and how it gets into a pipeline that samples.

    user_adapter.safetensors    an IP-Adapter's: image_proj.proj.weight, ..., ip_adapter.1.to_k_ip.weight, ...
    user_adapter.json           what it is for: the family, and whose states it takes

diffusers alone reads the tensors for UNets of Stable Diffusion 1.x, 2.x and XL, and for FLUX.1:

    pipe.load_ip_adapter(folder, subfolder="", weight_name="user_adapter.safetensors", image_encoder_folder=None)
    pipe(prompt, ip_adapter_image_embeds=[torch.stack([torch.zeros_like(states), states])])

It always makes four tokens of a state: fewer are repeated, which leaves the attention as it was.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffpo.core.types import Embedding
from diffpo.disk.files import write_json
from diffpo.errors import UserError
from diffpo.models import FAMILIES, family_of
from diffpo.models.base import Denoiser
from diffpo.models.user_adapter import ADAPTER, UserAdapter, add_user_adapter, user_adapter, user_attentions

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from diffpo.models.bases import BaseModel

TENSORS, INDEX = "user_adapter.safetensors", "user_adapter.json"
FORMAT = "diffpo user adapter 1"
IP_TOKENS = 4
"""Tokens that diffusers makes of a state."""


def save_user_adapter(folder: Path, base: BaseModel, network: Any, weights: dict[str, Tensor]) -> None:
    """Write the adapter of a network, its whole `weights` named as in there."""
    adapter: UserAdapter = network.get_submodule(ADAPTER)
    proj, norm = weights[f"{ADAPTER}.proj.weight"], weights[f"{ADAPTER}.norm.weight"]
    repeated = proj.unflatten(0, (adapter.tokens, -1)).repeat(IP_TOKENS // adapter.tokens, 1, 1).flatten(0, 1)
    tensors = {
        "image_proj.proj.weight": repeated,
        "image_proj.proj.bias": torch.zeros_like(repeated[:, 0]),
        "image_proj.norm.weight": norm,
        "image_proj.norm.bias": torch.zeros_like(norm),
    }
    for number, name in zip(_numbers(base.family, network), user_attentions(network), strict=True):
        for kind in ("k", "v"):
            weight = weights[f"{name}.to_{kind}.weight"]
            tensors[f"ip_adapter.{number}.to_{kind}_ip.weight"] = weight
            if base.family.text_attention.ip_biases:
                tensors[f"ip_adapter.{number}.to_{kind}_ip.bias"] = torch.zeros_like(weight[:, 0])
    save_file({name: x.contiguous().cpu() for name, x in tensors.items()}, folder / TENSORS, {"format": "pt"})
    said = {
        "format": FORMAT,
        "family": next(name for name, family in FAMILIES.items() if family is base.family),
        "embedder": adapter.embedding.embedder,
        "width": adapter.embedding.width,
        "tokens": adapter.tokens,
    }
    write_json(folder / INDEX, said)


def _numbers(family: type[Denoiser], network: Any) -> list[int]:
    """How an IP-Adapter's file counts the attentions: in a UNet, those of the image to itself too."""
    assert family.text_attention is not None
    first, step = family.text_attention.ip_numbers
    return [first + step * i for i, _ in enumerate(user_attentions(network))]


def find_user_adapter(spec: str | Path) -> Path:
    """Find the folder of an adapter: itself, or a run's.

    Raises:
        UserError: There is none.
    """
    root = Path(spec).expanduser()
    for folder in (root / "final", root):
        if (folder / INDEX).is_file() and (folder / TENSORS).is_file():
            return folder
    raise UserError(
        f"{spec} holds no user adapter ({TENSORS} and {INDEX}): give the run of `diffpo train` with model=user, or its "
        "final/"
    )


def embedding_of(folder: Path) -> Embedding:
    """Read which states the adapter in a folder takes, without its tensors.

    Raises:
        UserError: The file is missing or broken.
    """
    try:
        said = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return Embedding(said["embedder"], said["width"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the user adapter in {folder} cannot be read: {error}") from error


def load_user_adapter(pipeline: DiffusionPipeline, spec: str | Path) -> UserAdapter:
    """Add a trained adapter to a pipeline of its family, in place.

        adapter = load_user_adapter(pipe, "runs/NAME")
        with adapter.speaking(states):
            images = pipe(prompt).images

    A LoRA that was trained beside it is loaded before, as any LoRA.

    Args:
        pipeline: Of diffusers.
        spec: A run, or the folder of an adapter.

    Raises:
        UserError: There is no adapter, its files are broken, or it is for another model.
    """
    folder = find_user_adapter(spec)
    try:
        said = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        embedding, tokens, name = Embedding(said["embedder"], said["width"]), said["tokens"], said["family"]
        tensors = load_file(folder / TENSORS)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"the user adapter in {folder} cannot be read: {error}") from error
    family = family_of({**pipeline.config, "_class_name": type(pipeline).__name__})
    if family is None or family.text_attention is None or FAMILIES.get(name) is not family:
        raise UserError(
            f"the user adapter in {folder} is for {name}; this model is a {type(pipeline).__name__}. Give the base "
            "that the adapter was trained on"
        )
    network: Any = getattr(pipeline, family.components[0])
    if user_adapter(network) is not None:
        raise UserError(f"this {type(pipeline).__name__} has a user adapter already: open another one")
    adapter = add_user_adapter(network, family.text_attention, embedding, tokens)
    rows = len(tensors["image_proj.proj.weight"]) // IP_TOKENS * tokens
    named = {
        f"{ADAPTER}.proj.weight": tensors["image_proj.proj.weight"][:rows],
        f"{ADAPTER}.norm.weight": tensors["image_proj.norm.weight"],
    }
    for number, attention in zip(_numbers(family, network), user_attentions(network), strict=True):
        for kind in ("k", "v"):
            named[f"{attention}.to_{kind}.weight"] = tensors.get(f"ip_adapter.{number}.to_{kind}_ip.weight")
    own = {name: parameter for name, parameter in network.named_parameters() if name in named}
    held = sum(name.endswith("_ip.weight") for name in tensors) + 2
    if held != len(own) or any(named[name] is None or named[name].shape != p.shape for name, p in own.items()):
        raise UserError(
            f"the user adapter in {folder} does not fit this {type(network).__name__}: it was trained on another base"
        )
    for name, parameter in own.items():
        parameter.data = named[name].to(network.device, network.dtype)
        parameter.requires_grad_(False)
    return adapter
