"""The shapes world as GenEval's embedded case: its verifier sees and names colours exactly, no weights needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from diffpo.benchmarks.geneval.tasks import Requirement, SeenObject, Task
from diffpo.core.block import Block
from diffpo.errors import UserError
from diffpo.scorers.worlds import ShapesVerifier


@dataclass(frozen=True, kw_only=True)
class ShapesEyes(Block):
    """Detector and namer of colours in one; labels are shapes, or "unknown"."""

    @property
    def provenance(self) -> dict[str, Any]:
        """What decides what is seen: the verifier's code."""
        return {"detector": "shapes", "colors": "shapes", "code": ShapesVerifier().provenance["code"]}

    def detect(self, images: Sequence[Image], threshold: float) -> list[list[SeenObject]]:
        """Find the objects of each image, the largest first. What the verifier takes for an object, it is sure of."""
        assert threshold <= 1
        return [[item for item, _ in _seen(image)] for image in images]

    def name_colors(self, image: Image, objects: Sequence[SeenObject], label: str) -> list[str]:
        """The colour of each object: the one whose box it has."""
        colors = {item.box: color for item, color in _seen(image)}
        return [colors[item.box] for item in objects]


def shapes_tasks(caption: str) -> list[Task]:
    """What GenEval would ask of an image with this caption: two objects, their colours, and their position.

    None for captions with one shape twice: GenEval never asks for two different objects of one class.
    """
    from diffpo.worlds.shapes.scenes import parse_caption

    try:
        spec = parse_caption(caption)
    except ValueError as error:
        raise UserError(str(error)) from error
    first, second = spec.first, spec.second
    if first.shape == second.shape:
        return []
    plain = [Requirement(label=item.shape, count=1) for item in (second, first)]
    colored = [Requirement(label=item.shape, count=1, color=item.color) for item in (second, first)]
    placed = Requirement(label=first.shape, count=1, position=(spec.relation, 0))
    return [
        Task(tag="two_object", include=tuple(plain)),
        Task(tag="position", include=(plain[0], placed)),
        Task(tag="color_attr", include=tuple(colored)),
    ]


def _seen(image: Image) -> list[tuple[SeenObject, str]]:
    """Objects and their colours. A box follows from what the verifier measures: the extents of a shape at its area."""
    from diffpo.worlds.shapes.scenes import EXTENTS
    from diffpo.worlds.shapes.verify import UNIT_AREA, see

    try:
        objects = see(image).objects
    except ValueError as error:
        raise UserError(f"the shapes world's eyes see its own images only: {error}") from error
    found = []
    for item in objects:
        size = (item.area / UNIT_AREA.get(item.shape, 4.0)) ** 0.5
        width, up, down = EXTENTS.get(item.shape, (1.0, 1.0, 1.0))
        box = (item.x - width * size, item.y - up * size, item.x + width * size, item.y + down * size)
        found.append((SeenObject(item.shape, 1.0, box), item.color))
    return found
