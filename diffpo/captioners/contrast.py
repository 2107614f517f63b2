"""A person by what tells the images that they chose from those that they rejected, as a CLIP sees both.

    states = mean over the choices of (features(chosen) - features(rejected))            `[1 d]`

What the prompt asks for is in both images of a pair and cancels. One network pass per image and no text: it costs next
to nothing beside a vision-language model. The difference of whole features says little by itself, because most of it is
not taste; `diffpo data users --directions` keeps what differs between people.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from PIL.Image import Image

from diffpo.captioners.base import Choice, Portrait, UserEmbedder
from diffpo.core.block import Place
from diffpo.disk.weights import Weights
from diffpo.scorers.base import OnDevice, plain
from diffpo.scorers.loading import CLIP, load_network, load_part
from diffpo.scorers.parts import find_model

WHAT = "a CLIP of transformers"


@dataclass(frozen=True, kw_only=True)
class ClipEmbedder(OnDevice, UserEmbedder):
    """The mean difference between chosen and rejected images, seen by a CLIP of transformers."""

    name = "clip"
    is_vector = True

    path: Place = "openai/clip-vit-large-patch14"
    """Hub id or local folder of the CLIP, or `shapes:pickscore`."""
    features: Literal["patches", "pooled"] = "patches"
    """`patches`: the mean of the last layer's states over all patches, which keeps what the picture looks like;
    `pooled`: the projected feature that texts are compared with."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of weights and computation."""

    @property
    def provenance(self) -> dict[str, Any]:
        return {
            "embedder": self.name,
            "weights": self._weights.identity,
            "features": self.features,
            "dtype": self.dtype,
        }

    def embed(self, choices: Sequence[Choice]) -> Portrait:
        import torch

        sides = [[getattr(choice, side) for choice in choices] for side in ("chosen", "rejected")]
        with torch.no_grad():
            chosen, rejected = (self._look(images) for images in sides)
        return Portrait((chosen - rejected).mean(0, keepdim=True).numpy())

    def _look(self, images: Sequence[Image]) -> Any:
        """Features of images, `[n d]` float32 on the CPU."""
        network, processor = self._network
        pixels = processor([plain(image) for image in images], return_tensors="pt").pixel_values
        pixels = pixels.to(network.device, network.dtype)
        if self.features == "pooled":
            found = network.get_image_features(pixel_values=pixels).pooler_output
        else:
            found = network.vision_model(pixel_values=pixels).last_hidden_state[:, 1:].mean(1)
        return found.float().cpu()

    @cached_property
    def _weights(self) -> Weights:
        return find_model(self.path, what=WHAT)

    @cached_property
    def _network(self) -> tuple[Any, Any]:
        folder = self._weights.path
        network = load_network(folder, CLIP, WHAT, dtype=self.dtype, device=self.device)
        return network, load_part(folder, "AutoImageProcessor", "CLIP's image processor")
