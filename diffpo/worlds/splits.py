"""The splits of a world's captions: which one a caption belongs to, and prompts drawn from one."""

import hashlib
from collections.abc import Sequence
from typing import Literal

import torch

Split = Literal["train", "validation", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "validation", "heldout")


def split_by_hash(key: str) -> Split:
    """75 % train, 10 % validation, 15 % heldout; captions that show the same must come with the same key."""
    bucket = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") % 100
    return "train" if bucket < 75 else "validation" if bucket < 85 else "heldout"


def draw_prompts(captions: Sequence[str], n: int, seed: int) -> list[str]:
    """`n` captions, each as often as the others; the order depends on nothing but the seed.

    Raises:
        ValueError: If `n` is negative.
    """
    if n < 0:
        raise ValueError(f"n must not be negative, got {n}")
    generator = torch.Generator().manual_seed(seed)
    chosen: list[str] = []
    while len(chosen) < n:
        order = torch.randperm(len(captions), generator=generator).tolist()
        chosen += [captions[i] for i in order[: n - len(chosen)]]
    return chosen
