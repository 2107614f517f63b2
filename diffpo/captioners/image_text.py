"""Captions by any image-text-to-text model of transformers with a chat template: LLaVA, Qwen-VL, ...

DCPO (section 4) tells two kinds apart: "in-distribution" captions, whose captioner sees the image and its prompt, and
captions of the image alone. It used LLaVA-v1.6-34B and Emu2; mean length 32 tokens with the prompt in view, 18 without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from diffpo.captioners.base import Captioner
from diffpo.captioners.language import IMAGE_TEXT, ChatModel
from diffpo.core.block import Place
from diffpo.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

INSTRUCTIONS = {
    "image+prompt": 'This image was made for the prompt "{prompt}". Describe what the image really shows as a caption '
    "of one or two short sentences. Write nothing but the caption.",
    "image": "Describe this image as a caption of one short sentence. Write nothing but the caption.",
}


@dataclass(frozen=True, kw_only=True)
class ImageTextCaptioner(ChatModel, Captioner):
    """An image-text-to-text model of transformers that is told to describe the image."""

    name = "transformers"
    kind = IMAGE_TEXT
    what = "an image-text-to-text model"
    reader = "AutoProcessor", "a processor of images and text"
    reading: ClassVar = {"processor_kwargs": {"padding": True}}

    path: Place = "llava-hf/llava-v1.6-34b-hf"
    """Hub id or local folder of the model; the default is the paper's."""
    sees: Literal["image+prompt", "image"] = "image+prompt"
    """What the model is shown: the image and the prompt that it was made for, or the image alone."""
    instruction: str | None = None
    """What the model is told, with `{prompt}` where the prompt belongs; None: see `INSTRUCTIONS`."""

    def __post_init__(self) -> None:
        """Refuse an instruction that does not go with `sees`."""
        super().__post_init__()
        if (self.sees == "image+prompt") != ("{prompt}" in self._instruction):
            verb = "needs" if self.sees == "image+prompt" else "goes without"
            raise ConfigError(f"sees={self.sees} {verb} {{prompt}} in the instruction, which is {self.instruction!r}.")

    @property
    def _instruction(self) -> str:
        return self.instruction or INSTRUCTIONS[self.sees]

    @property
    def provenance(self) -> dict[str, Any]:
        return {"captioner": self.name, "sees": self.sees, "instruction": self._instruction, **self.model_provenance}

    def caption(self, images: Sequence[Image], prompts: Sequence[str], keys: Sequence[int]) -> list[str]:
        told = [self._instruction.replace("{prompt}", prompt) for prompt in prompts]
        pairs = zip(images, told, strict=True)
        return self.answer([[{"type": "image", "image": i}, {"type": "text", "text": t}] for i, t in pairs], keys)
