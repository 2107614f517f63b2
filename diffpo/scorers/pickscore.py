"""PickScore (Kirstain et al., arXiv:2305.01569): a CLIP ViT-H/14 that was trained on people's choices between images.

score = exp(logit_scale) cos(text, image)          about 21 for Stable Diffusion 1.5; scale "cosine" leaves the
factor out
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from diffpo.disk.weights import EMBEDDED
from diffpo.scorers.towers import CosineScorer, TowerSpec

HUB_MODEL = "yuvalkirstain/PickScore_v1"
HUB_PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
_ABOUT_EMBEDDED = "A small CLIP in PickScore's format, trained on the shapes world. No humans were asked."


@dataclass(frozen=True, kw_only=True)
class PickScore(CosineScorer):
    """PickScore, or any CLIP of transformers in its format."""

    name = "pickscore"
    about = "A CLIP trained to predict which of two images people choose for a prompt."
    origin = f"Hub {HUB_MODEL}; shapes:pickscore is embedded"

    path: str = HUB_MODEL
    """Hub id, local folder, a local file with config.json beside it, or `shapes:pickscore` (the embedded one, trained
    on simulated choices)."""
    processor: str | None = None
    """Where the tokenizer and the image processor are; None is the model's folder if they are in it, else the Hub id
    that PickScore uses."""
    scale: Literal["logit", "cosine", "percent"] = "logit"
    """`logit` multiplies the cosine by exp(logit_scale), as most tables do; `cosine` does not; `percent` is 100 cos."""

    @property
    def provenance(self) -> dict[str, Any]:
        return super().provenance | ({"about": _ABOUT_EMBEDDED} if self.path in EMBEDDED else {})

    @cached_property
    def _spec(self) -> TowerSpec:
        from diffpo.scorers.transformers_tower import find_transformers

        return find_transformers(self.path, what="PickScore", processor=self.processor, otherwise=HUB_PROCESSOR)
