"""Perturbed captions by an instruction-tuned language model that is told how much to change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from diffpo.captioners.base import Level, Perturber
from diffpo.captioners.language import CAUSAL, ChatModel
from diffpo.core.block import Place

CHANGES: dict[Level, str] = {
    "weak": "Change one small detail, such as a colour or an adjective, and leave everything else as it is.",
    "medium": "Change two or three details, such as colours, numbers, materials or places, and keep the subject.",
    "strong": "Change the subject and most details, and keep the length and the style.",
}
INSTRUCTION = (
    "Rewrite the caption of an image so that it no longer describes the image exactly. {change} Write nothing but the "
    "new caption.\n\nCaption: {caption}"
)


@dataclass(frozen=True, kw_only=True)
class Instruct(ChatModel, Perturber):
    """An instruction-tuned language model of transformers that is told to change the caption."""

    name = "instruct"
    kind = CAUSAL
    what = "a causal language model"
    reader = "AutoTokenizer", "a tokenizer"
    reading: ClassVar = {"padding": True, "enable_thinking": False}  # templates that do not know it pass over it

    path: Place = "Qwen/Qwen2.5-7B-Instruct"
    """Hub id or local folder of the model."""
    level: Level = "medium"
    """How much the caption is changed."""

    @property
    def _told(self) -> str:
        return INSTRUCTION.replace("{change}", CHANGES[self.level])

    @property
    def provenance(self) -> dict[str, Any]:
        return {"perturber": self.name, "level": self.level, "instruction": self._told, **self.model_provenance}

    def perturb(self, captions: Sequence[str], keys: Sequence[int]) -> list[str]:
        return self.answer([self._told.replace("{caption}", caption) for caption in captions], keys)
