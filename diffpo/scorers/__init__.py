"""Scorers: images and prompts -> numbers. Adding one is a file and a line in `SCORERS`."""

from __future__ import annotations

import difflib

from diffpo.errors import UserError
from diffpo.scorers.aesthetic import AestheticV1, AestheticV2
from diffpo.scorers.base import Scorer
from diffpo.scorers.clip import Clip
from diffpo.scorers.hps import HPSv2, HPSv21
from diffpo.scorers.hpsv3 import HPSv3
from diffpo.scorers.imagereward import ImageReward
from diffpo.scorers.mps import MPS
from diffpo.scorers.pickscore import PickScore
from diffpo.scorers.shapes import ShapesUtility, ShapesVerifier

SCORERS: dict[str, type[Scorer]] = {
    "shapes": ShapesVerifier,
    "shapes-utility": ShapesUtility,
    "pickscore": PickScore,
    "hpsv2": HPSv2,
    "hpsv2.1": HPSv21,
    "clip": Clip,
    "aesthetic": AestheticV2,
    "aesthetic-v1": AestheticV1,
    "imagereward": ImageReward,
    "mps": MPS,
    "hpsv3": HPSv3,
}


def find_scorer(name: str) -> type[Scorer]:
    """Look a scorer up.

    Raises:
        UserError: If there is none of that name, with the close match.
    """
    if name not in SCORERS:
        close = difflib.get_close_matches(name, SCORERS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UserError(f"unknown scorer {name!r}.{hint} There are {', '.join(SCORERS)}.")
    return SCORERS[name]


__all__ = [
    "MPS",
    "SCORERS",
    "AestheticV1",
    "AestheticV2",
    "Clip",
    "HPSv2",
    "HPSv3",
    "HPSv21",
    "ImageReward",
    "PickScore",
    "Scorer",
    "ShapesUtility",
    "ShapesVerifier",
    "find_scorer",
]
