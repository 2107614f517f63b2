"""A small folder of users' states, as `diffpo data users` writes them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow
import torch
from diffusers import StableDiffusionPipeline
from pyarrow import parquet
from safetensors.torch import save_file

from diffpo.core.types import Embedding
from diffpo.media.users import FORMAT, INDEX, STATES, TABLE
from diffpo.models.bases import find_base
from diffpo.models.unet import UNet
from diffpo.models.user_adapter import add_user_adapter
from diffpo.models.user_files import save_user_adapter

EMBEDDING = Embedding("tiny", 6)
COUNT = 2
"""States of each draw."""


def save_users(folder: Path, draws: Mapping[str, Sequence[Sequence[str]]], unseen: Sequence[str] = ()) -> Path:
    """Save users' states, random numbers.

    Args:
        folder: Where.
        draws: By user, the prompts of the support pairs of each draw.
        unseen: Users that nothing is learned from.
    """
    folder.mkdir(parents=True)
    rows = [(name, list(prompts)) for name, drawn in draws.items() for prompts in drawn]
    said = {"format": FORMAT, "embedder": EMBEDDING.embedder, "width": EMBEDDING.width, "states": COUNT}
    (folder / INDEX).write_text(json.dumps(said))
    columns = {
        "user_id": [name for name, _ in rows],
        "seen": [name not in unseen for name, _ in rows],
        "prompts": pyarrow.array([prompts for _, prompts in rows], pyarrow.list_(pyarrow.string())),
    }
    parquet.write_table(pyarrow.table(columns), folder / TABLE)
    save_file({"states": user_states(len(rows))}, folder / STATES)
    return folder


def save_user_run(base: Path, folder: Path) -> Path:
    """Save a run folder whose `final/` holds a user adapter that has learned something; `base` is a tiny sd15."""
    from tiny_steps import move  # which imports this file

    unet = StableDiffusionPipeline.from_pretrained(base).unet
    assert UNet.text_attention is not None
    add_user_adapter(unet, UNet.text_attention, EMBEDDING, 4)
    move(unet, 0.5)
    (folder / "final").mkdir(parents=True)
    save_user_adapter(folder / "final", find_base(str(base)), unet, dict(unet.state_dict()))
    return folder


def user_states(rows: int) -> torch.Tensor:
    """States of so many users, `[b n d]`, always the same."""
    return torch.randn(rows, COUNT, EMBEDDING.width, generator=torch.Generator().manual_seed(5))
