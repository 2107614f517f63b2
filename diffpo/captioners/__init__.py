"""Captioners and perturbers, which make dual captions, and labellers, which compare clips segment by segment.

Adding one is a file and a line in its dictionary.
"""

from diffpo.captioners.base import Captioner, Labeller, Perturber
from diffpo.captioners.chat import ImageTextCaptioner, Instruct
from diffpo.captioners.dipper import Dipper
from diffpo.captioners.endpoint import EndpointLabeller
from diffpo.captioners.labellers import ChatLabeller
from diffpo.captioners.shapes import ShapesCaptioner, ShapesPerturber

CAPTIONERS: dict[str, type[Captioner]] = {"transformers": ImageTextCaptioner, "shapes": ShapesCaptioner}
PERTURBERS: dict[str, type[Perturber]] = {"dipper": Dipper, "instruct": Instruct, "shapes": ShapesPerturber}
LABELLERS: dict[str, type[Labeller]] = {"chat": ChatLabeller, "endpoint": EndpointLabeller}
