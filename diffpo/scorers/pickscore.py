"""PickScore (Kirstain et al., arXiv:2305.01569): a CLIP ViT-H/14 that was trained on people's choices between images.

    score = exp(logit_scale) cos(text, image)          about 21 for Stable Diffusion 1.5; scale "cosine" leaves the
    factor out

Images are resized and cropped by the PIL processor, on every machine: that is what the authors ran. The torchvision
one, which transformers prefers where it is installed, rounds differently.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

from diffpo.errors import UserError
from diffpo.scorers.base import Scorer
from diffpo.weights import EMBEDDED, Weights, locate, snapshot

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

HUB_MODEL = "yuvalkirstain/PickScore_v1"
HUB_PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
_FORMAT = "a CLIP in PickScore's format"
_PROCESSOR = "CLIP's tokenizer and image processor (vocab.json, merges.txt, preprocessor_config.json)"
_ABOUT = "A CLIP trained to predict which of two images people choose for a prompt."
_ABOUT_EMBEDDED = "A small CLIP in PickScore's format, trained on the shapes world. No humans were asked."


@dataclass(frozen=True, kw_only=True)
class PickScore(Scorer):
    """PickScore, or any CLIP of transformers in its format."""

    name = "pickscore"

    path: str = HUB_MODEL
    """Hub id, local folder, or `shapes:pickscore` (the embedded one, trained on simulated choices)."""
    processor: str | None = None
    """Where the tokenizer and the image processor are; None is the model's folder if they are in it, else the Hub id
    that PickScore uses."""
    scale: Literal["logit", "cosine"] = "logit"
    """`logit` multiplies the cosine by exp(logit_scale), as most tables do; `cosine` does not."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of weights and computation; half precision makes artificial ties."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, ..."""
    batch: int = 32
    """Images at a time."""

    @property
    def provenance(self) -> dict[str, Any]:
        """What decides a score, known without loading the weights."""
        return {
            "scorer": self.name,
            "about": _ABOUT_EMBEDDED if self.path in EMBEDDED else _ABOUT,
            "weights": self._weights.identity,
            "processor": self._processor.identity,
            "preprocessing": "PIL",
            "dtype": self.dtype,
            "scale": self.scale,
        }

    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        """Score each image for its prompt: `[n]` float32. See `Scorer.score`."""
        import torch

        rows = range(0, len(images), self.batch)
        with torch.no_grad():
            parts = [self._score_batch(images[i : i + self.batch], prompts[i : i + self.batch]) for i in rows]
        return torch.cat(parts) if parts else torch.zeros(0)

    def _score_batch(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        import torch

        model, tokenizer, image_processor = self._loaded
        pixels = image_processor([image.convert("RGB") for image in images], return_tensors="pt").pixel_values
        length = model.config.text_config.max_position_embeddings
        tokens = tokenizer(list(prompts), padding=True, truncation=True, max_length=length, return_tensors="pt").to(
            model.device
        )
        image = model.get_image_features(pixel_values=pixels.to(model.device, model.dtype)).pooler_output
        text = model.get_text_features(**tokens).pooler_output
        cosine = torch.cosine_similarity(image.float(), text.float(), dim=-1)
        factor = model.logit_scale.float().exp() if self.scale == "logit" else 1.0
        return (factor * cosine).cpu()

    @cached_property
    def _weights(self) -> Weights:
        patterns = ("config.json", "model*.safetensors*")
        fetch = partial(snapshot, what=_FORMAT, patterns=patterns, probe="config.json")
        return locate(self.path, what=_FORMAT, fetch=fetch)

    @cached_property
    def _processor(self) -> Weights:
        if self.processor is None and (self._weights.path / "preprocessor_config.json").is_file():
            return self._weights
        patterns = ("*config.json", "tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json")
        fetch = partial(snapshot, what=_PROCESSOR, patterns=patterns, probe="preprocessor_config.json")
        return locate(self.processor or HUB_PROCESSOR, what=_PROCESSOR, fetch=fetch)

    @cached_property
    def _loaded(self) -> tuple[Any, Any, Any]:
        """The model, the tokenizer and the image processor."""
        import torch

        from diffpo.compat import ensure_torchvision
        from diffpo.evaluate.sampling import pick_device

        ensure_torchvision()
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        folder, processor = self._weights.path, self._processor.path
        _check_kind(self.path, folder)
        dtype = getattr(torch, self.dtype)
        try:
            model, info = CLIPModel.from_pretrained(folder, dtype=dtype, output_loading_info=True)
            tokenizer = AutoTokenizer.from_pretrained(processor)
            image_processor = AutoImageProcessor.from_pretrained(processor, backend="pil")
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{self.path} cannot be loaded as PickScore: {error}") from error
        missing = sorted(info["missing_keys"])
        if missing:
            raise UserError(f"{self.path} is no whole CLIP: {len(missing)} weights are missing, {missing[0]} first.")
        return model.eval().requires_grad_(False).to(pick_device(self.device)), tokenizer, image_processor


def _check_kind(spec: str, folder: Any) -> None:
    """Raise if the folder holds no CLIP: transformers would fill one with random numbers."""
    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError) as error:
        raise UserError(f"{spec} has no readable config.json, so it is no model of transformers ({error}).") from error
    if kind != "clip":
        raise UserError(
            f"{spec} is a {kind!r} model; PickScore is a 'clip' model. Give {HUB_MODEL} or a local copy of it."
        )
