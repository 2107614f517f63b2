"""Perturbed captions by an instruction-tuned language model that is told how much to change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from diffpo.captioners.base import Level, Perturber
from diffpo.captioners.language import CAUSAL, LanguageModel, load_part, pad_left, require_template, tidy
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

    path: Place = "Qwen/Qwen2.5-7B-Instruct"
    """Hub id or local folder of the model."""
    level: Level = "medium"
    """How much the caption is changed."""

    @property
    def provenance(self) -> dict[str, Any]:
        """What decides a result, known without loading the weights."""
        told = INSTRUCTION.replace("{change}", CHANGES[self.level])
        return {"perturber": self.name, "level": self.level, "instruction": told, **self.model_provenance}

    def perturb(self, captions: Sequence[str], keys: Sequence[int]) -> list[str]:
        """Rewrite each caption; see `Perturber.perturb`."""
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
        tokens = self.generate(inputs, keys, self._tokenizer.pad_token_id)[:, inputs["input_ids"].shape[1] :]
        return [tidy(text) for text in self._tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = load_part(self.path, self.weights.path, "AutoTokenizer", "tokenizer")
        require_template(self.path, tokenizer)
        pad_left(tokenizer)
        return tokenizer
