"""Models of transformers with a chat template that are told what to write.

    transformers    captions of images by any image-text-to-text model: LLaVA, Qwen-VL, ...
    instruct        perturbed captions by an instruction-tuned language model that is told how much to change

DCPO (section 4) tells two kinds of captions apart: "in-distribution" ones, whose captioner sees the image and its
prompt, and captions of the image alone. It used LLaVA-v1.6-34B and Emu2; mean length 32 tokens with the prompt in view,
18 without.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from PIL.Image import Image

from diffpo.captioners.base import Captioner, Level, Perturber
from diffpo.captioners.language import LanguageModel, tidy
from diffpo.core.block import Count, Place
from diffpo.errors import ConfigError, UserError
from diffpo.media.frames import Clip
from diffpo.scorers.loading import Kind, load_part

INSTRUCTIONS = {
    "image+prompt": 'This image was made for the prompt "{prompt}". Describe what the image really shows as a caption '
    "of one or two short sentences. Write nothing but the caption.",
    "image": "Describe this image as a caption of one short sentence. Write nothing but the caption.",
}
CLIP_INSTRUCTIONS = {
    "image+prompt": 'These are frames, in the order of time, of a clip that was made for the prompt "{prompt}". '
    "Describe what the clip really shows as a caption of one or two short sentences. Write nothing but the caption.",
    "image": "These are frames of a clip, in the order of time. Describe the clip as a caption of one short sentence. "
    "Write nothing but the caption.",
}
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
class ChatModel(LanguageModel):
    """The options of whatever runs a language model that is told what to write."""

    reader: ClassVar[tuple[str, str]]
    """The class of transformers that reads what the model is told, and the same for messages."""
    reading: ClassVar[Mapping[str, Any]]
    """What the reader's `apply_chat_template` is told besides."""

    def answer(self, told: Sequence[Any], keys: Sequence[int], words: Sequence[str] = ()) -> list[str]:
        """Write what the model answers to each content of a message, as it comes.

        The key of each content decides its draws. Where there are `words`, the answer is one of them.
        """
        inputs, tokenizer = self._read(told)
        length = inputs["input_ids"].shape[1]
        allowed = _one_of(tokenizer, words, length) if words else None
        tokens = self.generate(inputs, keys, tokenizer.pad_token_id, allowed)[:, length:]
        return tokenizer.batch_decode(tokens, skip_special_tokens=True)

    def answer_with_states(self, told: Any, key: int) -> tuple[str, tuple[Any, ...]]:
        """Write what the model answers to one content of a message, and say what it held when it wrote the end of it.

        Returns:
            The answer as it comes; and hidden states `[d]`: see `LanguageModel.generate_with_states`.
        """
        inputs, tokenizer = self._read([told])
        tokens, states = self.generate_with_states(inputs, key, tokenizer.pad_token_id)
        return tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True), states

    def _read(self, told: Sequence[Any]) -> tuple[Any, Any]:
        """What the model is given for contents of messages, and its tokenizer."""
        inputs = self._reader.apply_chat_template(
            [[{"role": "user", "content": content}] for content in told],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            **self.reading,
        )
        return inputs, getattr(self._reader, "tokenizer", self._reader)

    @cached_property
    def _reader(self) -> Any:
        """A tokenizer or processor; it pads chats in front, so that they end where their continuations begin."""
        folder = self.weights.path
        reader = load_part(folder, *self.reader)
        if not reader.chat_template:
            raise UserError(
                f"{folder} has no chat template (chat_template.jinja), so nobody knows how to address it. Give a chat "
                "or instruct version of the model, or add the template to a local copy."
            )
        tokenizer = getattr(reader, "tokenizer", reader)
        tokenizer.padding_side = "left"
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        return reader


@dataclass(frozen=True, kw_only=True)
class ImageTextModel(ChatModel):
    """The options of whatever runs an image-text-to-text model of transformers."""

    kind = Kind("AutoModelForImageTextToText", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES")
    what = "an image-text-to-text model"
    reader = "AutoProcessor", "a processor of images and text"
    reading: ClassVar = {"processor_kwargs": {"padding": True}}


@dataclass(frozen=True, kw_only=True)
class ImageTextCaptioner(ImageTextModel, Captioner):
    """An image-text-to-text model of transformers that is told to describe the image."""

    name = "transformers"

    path: Place = "llava-hf/llava-v1.6-34b-hf"
    """Hub id or local folder of the model; the default is the paper's."""
    sees: Literal["image+prompt", "image"] = "image+prompt"
    """What the model is shown: the image and the prompt that it was made for, or the image alone."""
    instruction: str | None = None
    """What the model is told, with `{prompt}` where the prompt belongs; None: see `INSTRUCTIONS`, and
    `CLIP_INSTRUCTIONS` for several frames of a clip."""
    frames: Count = 1
    """Of a clip so many frames, evenly spread from its first to its last, are shown; the model must take several."""

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
        shown = {"frames": self.frames} if self.frames > 1 else {}
        told = {"captioner": self.name, "sees": self.sees, "instruction": self._instruction, **shown}
        return told | self.model_provenance

    def caption(self, images: Sequence[Image], prompts: Sequence[str], keys: Sequence[int]) -> list[str]:
        return self.describe([Clip((image,)) for image in images], prompts, keys)

    def describe(self, clips: Sequence[Clip], prompts: Sequence[str], keys: Sequence[int]) -> list[str]:
        asked = []
        for clip, prompt in zip(clips, prompts, strict=True):
            shown = clip.some(self.frames)
            usual = INSTRUCTIONS if len(shown) == 1 else CLIP_INSTRUCTIONS
            told = (self.instruction or usual[self.sees]).replace("{prompt}", prompt)
            asked.append([*({"type": "image", "image": frame} for frame in shown), {"type": "text", "text": told}])
        return list(map(tidy, self.answer(asked, keys)))


@dataclass(frozen=True, kw_only=True)
class Instruct(ChatModel, Perturber):
    """An instruction-tuned language model of transformers that is told to change the caption."""

    name = "instruct"
    kind = Kind("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
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
        asked = [self._told.replace("{caption}", caption) for caption in captions]
        return list(map(tidy, self.answer(asked, keys)))


def _one_of(tokenizer: Any, words: Sequence[str], start: int) -> Callable[[int, Any], list[int]]:
    """Say which tokens may follow so that what is written from the place `start` on is one of `words`."""
    ends = [[*tokenizer(word, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for word in words]

    def allowed(_row: int, tokens: Any) -> list[int]:
        written = tokens[start:].tolist()
        following = {end[len(written)] for end in ends if end[: len(written)] == written and len(end) > len(written)}
        return sorted(following) or [tokenizer.eos_token_id]  # a row that has ended waits for the others

    return allowed
