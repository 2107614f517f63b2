"""Captioners and perturbers: what dual captions are made with. Adding one is a file and a line in its dictionary."""

from diffpo.captioners.base import Captioner, Perturber
from diffpo.captioners.chat import ImageTextCaptioner, Instruct
from diffpo.captioners.dipper import Dipper
from diffpo.captioners.shapes import ShapesCaptioner, ShapesPerturber

CAPTIONERS: dict[str, type[Captioner]] = {"transformers": ImageTextCaptioner, "shapes": ShapesCaptioner}
PERTURBERS: dict[str, type[Perturber]] = {"dipper": Dipper, "instruct": Instruct, "shapes": ShapesPerturber}
