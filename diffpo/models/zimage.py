"""Z-Image (arXiv:2511.22699): one stream of picture and text tokens, a rectified flow that counts from noise to data.

The network is told 1 - sigma and answers x0 - eps. It takes lists: each picture has a text as long as its prompt.
"""

from collections.abc import Mapping
from operator import itemgetter
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffpo.core.types import Condition
from diffpo.models.base import Width
from diffpo.models.flow import Flow


class ZImage(Flow):
    """`ZImagePipeline`'s transformer."""

    pipelines = ("ZImagePipeline",)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    blocks = ("ZImageTransformerBlock",)
    sides = 16
    widths = (Width("text width", {"text_encoder": "hidden_size"}, itemgetter("cap_feat_dim")),)
    token_limits: ClassVar = {"tokenizer": 512}  # the pipeline's max_sequence_length, its chat template included

    def answer(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        assert cond.mask is not None, "Z-Image's conditions carry a mask: captions differ in length"
        assert z.shape[2] == 1, f"this family takes images; got {z.shape[2]} frames"
        texts = [text[mask] for text, mask in zip(cond.text.to(self.dtype), cond.mask.to(z.device), strict=True)]
        told = (1 - t).to(z.device, torch.promote_types(self.dtype, torch.float32))
        return -torch.stack(self.network(list(z.to(self.dtype)), told, texts, return_dict=False)[0])

    @staticmethod
    def encode_prompt(pipeline: Any, prompt: str, network: Mapping[str, Any]) -> dict[str, Tensor]:
        """The language model's states before the last of the prompt in its chat template."""
        (text,), _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)
        return {"text": text, "mask": torch.ones(len(text), dtype=torch.bool)}
