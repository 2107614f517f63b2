"""Cards by name, with the peaks and memory that their makers state; and what is in this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from diffpo.errors import UserError

GIB = 2**30
REACHED = 0.8
"""Share of the stated peak that one large matrix product reaches: an H100 made 793 of 989 TFLOP/s."""


@dataclass(frozen=True)
class Card:
    """What decides how fast and how large an update may be."""

    name: str
    half: float
    """TFLOP/s of a large matrix product in bfloat16 or float16."""
    single: float
    """In float32: TF32 where the card has it."""
    gib: float
    """Memory that it reports."""

    is_cpu: bool = False


def _stated(name: str, half: float, single: float, gib: float) -> Card:
    return Card(name, REACHED * half, REACHED * single, gib)


CARDS = {
    "b200": _stated("NVIDIA B200", 2250, 1125, 178),
    "h200": _stated("NVIDIA H200", 989, 495, 140),
    "h100": _stated("NVIDIA H100 80GB", 989, 495, 79.6),
    "a100": _stated("NVIDIA A100 80GB", 312, 156, 79.3),
    "a100-40": _stated("NVIDIA A100 40GB", 312, 156, 39.4),
    "l40s": _stated("NVIDIA L40S", 362, 183, 44.5),
    "a6000": _stated("NVIDIA RTX A6000", 155, 77, 47.5),
    "rtx4090": _stated("NVIDIA GeForce RTX 4090", 165, 83, 23.6),
    "rtx3090": _stated("NVIDIA GeForce RTX 3090", 71, 36, 23.6),
}
"""Dense products, half precision with sums in float32."""


def find_card(name: str | None) -> Card:
    """The card of a name, or the one that is here.

    Raises:
        UserError: There is no such name, or the card here has none of them.
    """
    if name == "cpu" or (name is None and not torch.cuda.is_available()):
        return this_cpu()
    if name is None:
        found = torch.cuda.get_device_properties(0)
        words = found.name.lower().replace(" ", "")
        like = [card for key, card in CARDS.items() if key.partition("-")[0] in words]
        if not like:
            raise UserError(f"this {found.name} is not among the known cards: give --card {', '.join(CARDS)} or cpu")
        nearest = min(like, key=lambda card: abs(card.gib - found.total_memory / GIB))
        return Card(found.name, nearest.half, nearest.single, found.total_memory / GIB)
    if name not in CARDS:
        raise UserError(f"--card is {name!r}; known are {', '.join(CARDS)}, and cpu, which is this machine's")
    return CARDS[name]


def this_cpu() -> Card:
    """This machine's processor, measured by one matrix product; it may use all memory that is free."""
    import psutil

    a = torch.randn(768, 768)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        torch.mm(a, a)
        seconds.append(time.perf_counter() - began)
    rate = 2 * 768**3 / min(seconds) / 1e12
    free = psutil.virtual_memory().available / GIB
    return Card(f"this CPU, {torch.get_num_threads()} threads", rate, rate, free, is_cpu=True)
