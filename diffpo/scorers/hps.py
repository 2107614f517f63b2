"""HPS v2 and v2.1 (Wu et al., arXiv:2306.09341): open_clip's ViT-H/14, trained on people's rankings of images.

    score = cos(text, image)         about 0.27 for Stable Diffusion 1.4; papers print 100 times that: scale "percent"

The official program runs in half precision on a GPU, where scores of equal images and near ones tie: here it is float32
unless asked otherwise. Scores of the two versions are not comparable; they have names of their own.
"""

from abc import ABC
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from diffpo.errors import UserError
from diffpo.scorers.parts import find_file
from diffpo.scorers.towers import CosineScorer, TowerSpec

HUB_MODEL = "xswu/HPSv2"
FILES = {"hpsv2": "HPS_v2_compressed.pt", "hpsv2.1": "HPS_v2.1_compressed.pt"}
_ABOUT = "A CLIP trained to predict how people rank images of a prompt (Human Preference Score {version})."


@dataclass(frozen=True, kw_only=True)
class HPS(CosineScorer, ABC):
    """A CLIP of open_clip that was tuned to people's rankings."""

    version: ClassVar[str]

    path: str = HUB_MODEL
    """A local .pt or .safetensors file, a folder with one, or a Hub id."""
    file: str | None = None
    """The file's name in a folder or Hub repository; None is the official one."""
    architecture: str = "ViT-H-14"
    """A name that open_clip knows, or a JSON file like open_clip's own, for other networks in this format."""
    scale: Literal["cosine", "percent", "logit"] = "cosine"
    """`cosine` as the official `score`; `percent` 100 times that, as its benchmark; `logit` times exp(logit_scale)."""
    resize: Literal["longest-side", "longest-side-plain"] = "longest-side"
    """`longest-side` smooths while it scales down, as an installation of today does; `longest-side-plain` does not, as
    torchvision did before 0.17, and probably the numbers in papers of that time."""

    @cached_property
    def _spec(self) -> TowerSpec:
        from diffpo.scorers.open_clip_tower import from_file

        file = self.file or FILES[self.name]
        weights = find_file(self.path, file=file, what=f"the weights of HPS {self.version} ({file})")
        for other, official in FILES.items():
            if other != self.name and weights.path.name == official:
                raise UserError(f"{weights.path} holds the weights of {other}, not {self.name}. Use scorer {other}.")
        return from_file(weights, self.architecture, self.resize)


@dataclass(frozen=True, kw_only=True)
class HPSv2(HPS):
    """HPS v2, the official program's default for single images."""

    name = "hpsv2"
    origin = f"Hub {HUB_MODEL}, {FILES[name]}"
    version = "v2"
    about = _ABOUT.format(version=version)


@dataclass(frozen=True, kw_only=True)
class HPSv21(HPS):
    """HPS v2.1, the official program's default for its benchmark."""

    name = "hpsv2.1"
    origin = f"Hub {HUB_MODEL}, {FILES[name]}"
    version = "v2.1"
    about = _ABOUT.format(version=version)
