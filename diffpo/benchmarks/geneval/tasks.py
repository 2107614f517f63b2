"""What GenEval asks of an image (Ghosh et al., arXiv:2310.11513), and what a detector has to tell about it.

A task is a line of GenEval's `evaluation_metadata.jsonl`: all of `include` must be seen, none of `exclude`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL.Image import Image

from diffpo.errors import UserError

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""GenEval's ten colours."""
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class SeenObject:
    """One object that a detector sees in an image."""

    label: str
    confidence: float
    """From 0 to 1."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels; right and bottom lie behind the last pixel."""
    mask: np.ndarray | None = None
    """`[height width]` of bool; None from a detector without masks."""


class Detector(Protocol):
    """Finds the objects of each image (RGB) with at least some confidence, in any order.

    `provenance`, known without loading the weights, says what decides what is found.
    """

    @property
    def provenance(self) -> dict[str, Any]: ...

    def detect(self, images: Sequence[Image], threshold: float) -> list[list[SeenObject]]: ...


class ColorNamer(Protocol):
    """Names the colour of each of some objects, all of them of one label; `provenance` as of a detector."""

    @property
    def provenance(self) -> dict[str, Any]: ...

    def name_colors(self, image: Image, objects: Sequence[SeenObject], label: str) -> list[str]: ...


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """A clause: so many objects of a kind."""

    label: str
    count: int
    """In `include`: at least so many. In `exclude`: fewer than so many."""
    color: str | None = None
    """All `count` of them must have it."""
    position: tuple[str, int] | None = None
    """How they stand to the objects of an earlier clause, and its number."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one image must show."""

    tag: str
    """One of GenEval's, or another name to group results by."""
    include: tuple[Requirement, ...]
    exclude: tuple[Requirement, ...] = ()

    @staticmethod
    def parse(record: Mapping[str, Any]) -> Task:
        """Read a line of GenEval's metadata.

        Raises:
            UserError: If it lacks something, or a position refers to no earlier clause.
        """
        try:
            include = tuple(_clause(item, number) for number, item in enumerate(record["include"]))
            exclude = tuple(_clause(item, 0) for item in record.get("exclude") or ())
            return Task(tag=str(record["tag"]), include=include, exclude=exclude)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{record.get('prompt', record)!r} has no readable GenEval task ({type(error).__name__}: {error}). It "
                "needs `tag` and `include`, a list of objects with `class`, `count` and perhaps `color`, `position`."
            ) from error


def _clause(item: Mapping[str, Any], number: int) -> Requirement:
    position = item.get("position")
    if position is not None:
        relation, target = position
        if relation not in RELATIONS or not 0 <= int(target) < number:
            raise ValueError(f"position {position} is no relation to an earlier clause")
        position = (str(relation), int(target))
    return Requirement(label=str(item["class"]), count=int(item["count"]), color=item.get("color"), position=position)
