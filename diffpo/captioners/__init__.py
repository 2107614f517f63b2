"""Networks that describe.

Captioners and perturbers make dual captions, labellers compare clips segment by segment, embedders of users read what
somebody chose, and judges say what a user would prefer.

Adding one is a file and a line in its dictionary.
"""

from diffpo.captioners.base import Captioner, Labeller, Perturber, UserEmbedder, UserJudge
from diffpo.captioners.chat import ImageTextCaptioner, Instruct
from diffpo.captioners.column import ColumnEmbedder
from diffpo.captioners.contrast import ClipEmbedder
from diffpo.captioners.dipper import Dipper
from diffpo.captioners.endpoint import EndpointLabeller
from diffpo.captioners.judges import ChatJudge, WorldJudge
from diffpo.captioners.labellers import ChatLabeller
from diffpo.captioners.profile import ProfileEmbedder
from diffpo.captioners.shapes import ShapesCaptioner, ShapesPerturber

CAPTIONERS: dict[str, type[Captioner]] = {"transformers": ImageTextCaptioner, "shapes": ShapesCaptioner}
PERTURBERS: dict[str, type[Perturber]] = {"dipper": Dipper, "instruct": Instruct, "shapes": ShapesPerturber}
LABELLERS: dict[str, type[Labeller]] = {"chat": ChatLabeller, "endpoint": EndpointLabeller}
EMBEDDERS: dict[str, type[UserEmbedder]] = {
    "profile": ProfileEmbedder,
    "clip": ClipEmbedder,
    "column": ColumnEmbedder,
}
JUDGES: dict[str, type[UserJudge]] = {"users-world": WorldJudge, "chat": ChatJudge}
