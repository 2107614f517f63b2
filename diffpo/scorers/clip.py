"""CLIP score: how well an image fits its prompt.

    score = cos(text, image)

Papers mean different networks and scales by it; the presets name them.

    vit-l-14-openai      OpenAI's ViT-L/14 through transformers; the aesthetic scorers look through the same one
    vit-h-14-laion2b     open_clip's ViT-H/14 of LAION
    diffusion-dpo        the same weights, images padded as HPS does: what the Diffusion-DPO repository computes
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffpo.disk.weights import Weights
from diffpo.errors import UserError
from diffpo.scorers.loading import IMAGE_TEXT
from diffpo.scorers.parts import OPEN_CLIP_CONFIG, describe_folder, find_folder
from diffpo.scorers.towers import CosineScorer, TowerSpec

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from diffpo.scorers.open_clip_tower import Resizing

OPENAI = "openai/clip-vit-large-patch14"
LAION = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
Library = Literal["auto", "open_clip", "transformers"]
Preprocessing = Literal["auto", "own", "longest-side", "longest-side-plain"]
PRESETS: dict[str, tuple[str, Library, Resizing]] = {
    "vit-l-14-openai": (OPENAI, "transformers", "own"),
    "vit-h-14-laion2b": (LAION, "open_clip", "own"),
    "diffusion-dpo": (LAION, "open_clip", "longest-side"),
}
"""The model, who reads it, and its preprocessing."""


@dataclass(frozen=True, kw_only=True)
class Clip(CosineScorer):
    """The cosine between image and prompt in any CLIP of open_clip or transformers, or in an ALIGN."""

    name = "clip"
    about = "How well the image fits its prompt, by a CLIP that was trained on captions from the web."
    origin = f"Hub {OPENAI}; presets {', '.join(PRESETS)}"

    model: str = "vit-l-14-openai"
    """A preset; a Hub id; open_clip's ARCHITECTURE/TAG (`ViT-B-32/laion2b_s34b_b79k`); a local folder or file."""
    architecture: str | None = None
    """Of a single file for open_clip: a name that it knows, or a JSON file like its own."""
    library: Library = "auto"
    """Who reads it; `auto` is open_clip where its configuration is there."""
    preprocessing: Preprocessing = "auto"
    """`own` as the model's configuration says; `longest-side` as HPS does (open_clip only); `auto` as the preset says,
    else `own`."""
    scale: Literal["cosine", "percent", "logit", "clipscore"] = "cosine"
    """`percent` is 100 cos; `logit` exp(logit_scale) cos; `clipscore` 2.5 max(cos, 0), as the paper of that name."""
    prefix: str = ""
    """Put before each prompt, such as `A photo depicts ` for the paper's CLIPScore."""
    without: str = ""
    """A word that is left out of prompts: the rare word that stands for a subject, which no CLIP has learned."""

    @property
    def _found(self) -> dict[str, Any]:
        return super()._found | {name: text for name in ("prefix", "without") if (text := getattr(self, name))}

    def _judge(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        return super()._judge(images, [self.prefix + without_word(prompt, self.without) for prompt in prompts])

    @cached_property
    def _spec(self) -> TowerSpec:
        return find_clip(self.model, self.architecture, self.library, self.preprocessing)


def without_word(prompt: str, word: str) -> str:
    """Leave a word out of a prompt: `a sks dog on a hill` without `sks` is `a dog on a hill`."""
    return re.sub(rf"(?<!\w){re.escape(word)}(?!\w)\s*", "", prompt).strip() if word else prompt


def find_clip(model: str, architecture: str | None, library: Library, preprocessing: Preprocessing) -> TowerSpec:
    """Find a CLIP of open_clip, or a CLIP or an ALIGN of transformers.

    Args:
        model: See `Clip.model`, as for the others.
        architecture: See `Clip.architecture`.
        library: See `Clip.library`.
        preprocessing: See `Clip.preprocessing`.

    Raises:
        UserError: It is not there, or what is said of it does not fit.
    """
    from diffpo.scorers import open_clip_tower
    from diffpo.scorers.transformers_tower import find_transformers

    spec, library, resizing = PRESETS.get(model, (model, library, "own"))
    resizing = resizing if preprocessing == "auto" else preprocessing
    path = Path(spec).expanduser()
    if path.is_file() and architecture is not None and library != "transformers":
        return open_clip_tower.from_file(Weights(path), architecture, resizing)
    if not path.exists() and library != "transformers" and spec.count("/") == 1:
        spec = open_clip_tower.hub_id_of_tag(spec) or spec
    if library == "auto":
        library = _library_of(spec)
    if library == "open_clip":
        if path.is_file():
            raise UserError(f"{spec} is a single file: say its architecture, such as architecture=ViT-H-14.")
        return open_clip_tower.from_folder(spec, resizing)
    if resizing != "own":
        raise UserError(f"preprocessing={resizing} is for models of open_clip; {spec} is read by transformers.")
    return find_transformers(spec, what="a CLIP of transformers, or an ALIGN", kind=IMAGE_TEXT)


def _library_of(spec: str) -> Library:
    """Who reads a model, by the configuration beside it."""
    if Path(spec).expanduser().is_file():
        return "transformers"
    what = "a CLIP of open_clip or transformers"
    found = find_folder(spec, what=what, files=["config.json", OPEN_CLIP_CONFIG], probe="*config.json").path
    if (found / OPEN_CLIP_CONFIG).is_file():
        return "open_clip"
    if not (found / "config.json").is_file():
        raise UserError(f"{spec} is {describe_folder(found)}: it has neither {OPEN_CLIP_CONFIG} nor config.json.")
    return "transformers"
