"""Perturbed captions by an instruction-tuned language model that is told how much to change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from diffpo.captioners.base import Level, Perturber
from diffpo.captioners.language import CAUSAL, LanguageModel, load_chat_part
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
class Instruct(LanguageModel, Perturber):
    """An instruction-tuned language model of transformers that is told to change the caption."""

    name = "instruct"
    kind = CAUSAL
    what = "a causal language model"

    path: Place = "Qwen/Qwen2.5-7B-Instruct"
    """Hub id or local folder of the model."""
    level: Level = "medium"
    """How much the caption is changed."""

    @property
    def provenance(self) -> dict[str, Any]:
        told = INSTRUCTION.replace("{change}", CHANGES[self.level])
        return {"perturber": self.name, "level": self.level, "instruction": told, **self.model_provenance}

    def perturb(self, captions: Sequence[str], keys: Sequence[int]) -> list[str]:
        told = INSTRUCTION.replace("{change}", CHANGES[self.level])
        chats = [[{"role": "user", "content": told.replace("{caption}", caption)}] for caption in captions]
        inputs = self._tokenizer.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
            enable_thinking=False,  # templates that do not know it pass over it
        )
        return self.answer(inputs, keys, self._tokenizer)

    @cached_property
    def _tokenizer(self) -> Any:
        return load_chat_part(self.weights.path, "AutoTokenizer", "a tokenizer")
