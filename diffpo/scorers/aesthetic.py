"""LAION's aesthetic predictors: a small head on OpenAI's CLIP ViT-L/14. They look at the image alone.

    aesthetic       "improved" v2 (sac+logos+ava1-l14-linearMSE): five linear layers
    aesthetic-v1    the first one (sa_0_4_vit_l_14_linear): one linear layer; VBench divides it by ten

    score = head(image / |image|)          about 1 to 10

Both are called "aesthetic score" in papers, and are not comparable. Images are resized and cropped as OpenAI's program
for CLIP does.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from diffpo.errors import UserError
from diffpo.scorers.clip import OPENAI
from diffpo.scorers.loading import describe, read_state
from diffpo.scorers.parts import find_file
from diffpo.scorers.towers import TowerScorer, TowerSpec

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from diffpo.disk.weights import Weights

V2_MODEL, V2_FILE = "trl-lib/ddpo-aesthetic-predictor", "aesthetic-model.pth"
V1_ADDRESS = "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth"
_ABOUT = "How much people like the look of an image, whatever its prompt: LAION's aesthetic predictor {version}."


@dataclass(frozen=True, kw_only=True)
class Aesthetic(TowerScorer, ABC):
    """A head of linear layers on a CLIP's image features."""

    layers: ClassVar[tuple[str, ...]]
    """Names of the head's layers in its file, in order; nothing stands between them but dropout."""
    official: ClassVar[str]
    """Name of the authors' file."""

    head: str
    """The head's file: local, in a folder, in a Hub repository, or at an address."""
    file: str
    """Its name in a folder or Hub repository."""
    clip: str = OPENAI
    """The CLIP of transformers whose features the head was trained on: Hub id or local folder."""
    scale: Literal["1-10", "0-1"] = "1-10"
    """`0-1` divides by ten, as VBench does."""

    @property
    def _found(self) -> dict[str, Any]:
        return super()._found | {"head": self._head_file.identity}

    @cached_property
    def _head_file(self) -> Weights:
        return find_file(self.head, file=self.file, what=f"the aesthetic head ({self.official})")

    @cached_property
    def _spec(self) -> TowerSpec:
        from diffpo.scorers.transformers_tower import find_transformers

        what = "a CLIP ViT-L/14 of transformers"
        return find_transformers(self.clip, what=what, preprocessing="PIL, OpenAI's crop")

    @cached_property
    def _head(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each layer, float32 on the CPU: it costs nothing there."""
        path = self._head_file.path
        state = read_state(path)
        names = [f"{layer}{part}" for layer in self.layers for part in ("weight", "bias")]
        if sorted(state) != sorted(names):
            raise UserError(
                f"{path} holds {describe(state)}, which is not the head of {self.name}: that has {', '.join(names)}; "
                f"here are {', '.join(sorted(state)[:12])}."
            )
        return [(state[f"{layer}weight"].float(), state[f"{layer}bias"].float()) for layer in self.layers]

    def _judge(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        from torch.nn import functional

        head = self._head
        values = self.tower.image_features(images, self.batch)
        if values.shape[1] != head[0][0].shape[1]:
            raise UserError(
                f"{self.name}: the head {self._head_file.path} reads {head[0][0].shape[1]} numbers, and {self.clip} "
                f"gives {values.shape[1]}. Use the CLIP that it was trained on."
            )
        values = functional.normalize(values, dim=-1)
        for weight, bias in head:
            values = functional.linear(values, weight, bias)
        return values[:, 0] / (10 if self.scale == "0-1" else 1)


@dataclass(frozen=True, kw_only=True)
class AestheticV2(Aesthetic):
    """The "improved" predictor, which most papers on alignment mean."""

    name = "aesthetic"
    origin = f"Hub {V2_MODEL}, {V2_FILE}; {OPENAI}"
    about = _ABOUT.format(version="v2")
    layers = ("layers.0.", "layers.2.", "layers.4.", "layers.6.", "layers.7.")
    official = "sac+logos+ava1-l14-linearMSE.pth"

    head: str = V2_MODEL
    file: str = V2_FILE


@dataclass(frozen=True, kw_only=True)
class AestheticV1(Aesthetic):
    """The first predictor: one linear layer."""

    name = "aesthetic-v1"
    origin = f"{V1_ADDRESS}; Hub {OPENAI}"
    about = _ABOUT.format(version="v1")
    layers = ("",)
    official = "sa_0_4_vit_l_14_linear.pth"

    head: str = V1_ADDRESS
    file: str = "sa_0_4_vit_l_14_linear.pth"
