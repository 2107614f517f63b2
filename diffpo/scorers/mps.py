"""MPS (Zhang et al., arXiv:2405.14705): preference under a condition, a list of words that says what to look at.

    score = exp(logit_scale) cos(text, CLS of cross_model(image tokens; tokens of the prompt that fit the condition))

The text side is CLIP ViT-H/14's pooled feature; image and text tokens are CLIP's last states, each projected. Only the
model for overall preference was released, and only as a pickle of a whole module, which is not opened here: `RE-N-Y/
mpsv1` on the Hub holds the same weights as safetensors, and any state dict of the module will do. The released scripts
set the threshold to 0.01 (model, README) or 0.3 (HPDv2) and run in half precision, one prompt at a time. The speeds of
its rotary positions are a buffer of the file in half precision; they are used as they are.

Checked against the authors' program on small random weights: the published ones were not at hand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from diffpo.core.block import Sharing
from diffpo.disk.weights import Weights
from diffpo.errors import UserError
from diffpo.scorers.base import JointScorer
from diffpo.scorers.loading import CLIP, check_kind, describe, load_part, load_state, read_state
from diffpo.scorers.parts import PROCESSOR_CONFIG, find_beside, read_json

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

HUB_MODEL = "RE-N-Y/mpsv1"
HUB_PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
OVERALL = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, "
    "texture, quantity, attributes, position, number, location, word, things."
)
"""The authors' condition for overall preference."""
_FIXED = r"position_ids$|^layers\.\d+\.\d+\.fn\.(rotary_emb\.(?!inv_freq$)|norm\.bias$)"
_PROCESSOR = "CLIP's configuration, tokenizer and image processor (config.json, vocab.json, preprocessor_config.json)"


@dataclass(frozen=True, kw_only=True)
class MPS(JointScorer):
    """The Multi-dimensional Preference Score, for overall preference."""

    name = "mps"
    about = "A CLIP with cross-attention, trained on people's overall choices between images."
    file = "model.safetensors"
    what = "an MPS"
    origin = f"Hub {HUB_MODEL}, {file}; {HUB_PROCESSOR}"
    scale = "logit"

    path: str = HUB_MODEL
    processor: str | None = None
    """Where CLIP's configuration, tokenizer and image processor are; None is beside the weights if they are there, else
    the Hub id that MPS uses."""
    condition: str = OVERALL
    """What to look at; the released weights know the authors' condition for overall preference."""
    threshold: Sharing = 0.01
    """How relevant to the condition a token of the prompt must be, compared with the most relevant one."""

    @property
    def _found(self) -> dict[str, Any]:
        return super()._found | {
            "processor": self._processor.identity,
            "preprocessing": "PIL",
            "rotary speeds": "the checkpoint's",
            "condition": self.condition,
            "threshold": self.threshold,
        }

    def _prepare(self, images: list[Image]) -> Tensor:
        _, _, image_processor, _ = self._loaded
        return image_processor(images, return_tensors="pt").pixel_values

    def _score_batch(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        import torch

        from diffpo.scorers.mps_network import relevant_tokens

        clip, cross_model, _, tokenizer = self._loaded
        pixels = pixels.to(clip.device, clip.dtype)
        image = clip.visual_projection(clip.vision_model(pixel_values=pixels).last_hidden_state)
        length = clip.config.text_config.max_position_embeddings
        how = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
        ids = tokenizer([*prompts, self.condition], **how).input_ids
        states = clip.text_model(input_ids=ids.to(clip.device))  # no mask: the authors let padding be relevant too
        tokens, pooled = (clip.text_projection(x) for x in (states.last_hidden_state, states.pooler_output))
        seen = relevant_tokens(tokens[:-1], tokens[-1], self.threshold)
        mixed = cross_model(image, tokens[:-1], seen)[:, 0]
        cosine = torch.cosine_similarity(mixed.float(), pooled[:-1].float(), dim=-1)
        return clip.logit_scale.float().exp() * cosine

    @cached_property
    def _processor(self) -> Weights:
        return find_beside(
            self.processor, self._folder, otherwise=HUB_PROCESSOR, what=_PROCESSOR, probe=PROCESSOR_CONFIG
        )

    @cached_property
    def _loaded(self) -> tuple[Any, Any, Any, Any]:
        """CLIP and the cross model, all but its rotary speeds in `dtype`; the image processor and the tokenizer."""
        import torch
        from transformers import CLIPConfig, CLIPModel

        from diffpo.scorers.mps_network import SPEEDS, build_cross_model

        folder, path, dtype = self._processor.path, self._weights.path, getattr(torch, self.dtype)
        check_kind(folder, CLIP, _PROCESSOR)
        tokenizer = load_part(folder, "AutoTokenizer", "CLIP's tokenizer")
        image_processor = load_part(folder, "AutoImageProcessor", "CLIP's image processor")
        state = read_state(path)
        parts = split_state(state)
        try:
            cross_model = build_cross_model(parts["cross_model"])
        except KeyError as error:
            raise UserError(f"{path} holds {describe(state)}, not a whole MPS: {error} is missing.") from error
        clip = CLIPModel(CLIPConfig.from_dict(read_json(folder / "config.json")))
        for own in parts.values():
            own.update((name, x.to(dtype)) for name, x in own.items() if not name.endswith(SPEEDS))
        how = {"path": path, "what": self.what, "dtype": None, "device": self.device}
        load_state(clip, parts["model"], **how)
        load_state(cross_model, parts["cross_model"], **how)
        return clip, cross_model, image_processor, tokenizer


def split_state(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Divide published weights into CLIP's (`model`) and the cross model's (`cross_model`), by our names.

    Left out is what has a value by construction: positions, the zero bias of the norms. The Hub's copy has `mps.` in
    front of all. Where the rotary speeds are not in the file, they are computed, and rounded to half precision as those
    of the released module are.
    """
    from diffpo.scorers.mps_network import SPEEDS, rotary_speeds

    parts: dict[str, dict[str, Tensor]] = {"model": {}, "cross_model": {}}
    for published, value in state.items():
        part, _, name = published.removeprefix("mps.").partition(".")
        if part in parts and not re.search(_FIXED, name):
            parts[part][name.replace(".fn.", ".")] = value
    cross = parts["cross_model"]
    for name in [name for name in cross if name.endswith("fused_attn_ff_proj.weight")]:
        channels = len(cross[name.replace("1.fused_attn_ff_proj.weight", "0.to_kv.weight")]) // 2
        cross.setdefault(name.replace("fused_attn_ff_proj.weight", SPEEDS), rotary_speeds(channels).half())
    return parts
