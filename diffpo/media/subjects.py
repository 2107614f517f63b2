"""How prompts call a subject: a rare word and the word of its class, "sks dog", in templates of scenes.

A template says in a sentence where `{}`, the subject, is or how it is drawn, as DreamBooth's prompts do
(arXiv:2208.12242; these are our own). Three sets share none: one to learn from, one to choose an update by, one to
judge the model by.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffpo.core.block import Block
from diffpo.errors import ConfigError, UserError
from diffpo.media.found import caption_beside
from diffpo.media.prompts import PromptSet, load_prompts

SLOT = "{}"
"""Where the subject stands in a template."""
LEARNED = (
    "a {} in a street at night",
    "a {} on a mountain with snow",
    "a {} at the seaside",
    "a {} in an autumn forest",
    "a {} on the surface of the moon",
    "a {} on a kitchen table",
    "a {} beside a red bicycle",
    "an oil painting of a {}",
)
"""For the images that a model makes: RPO has eight of them."""
SELECTING = (
    "a {} in a library",
    "a {} among sunflowers",
    "a {} under water",
    "a {} in the desert at sunset",
    "a {} in front of a castle",
    "a {} on a sailing boat",
    "a {} next to a birthday cake",
    "a watercolour of a {}",
)
"""For `train.select`."""
JUDGED = (
    "a {} in the jungle",
    "a {} in a garden full of roses",
    "a {} on a frozen lake",
    "a {} on a wooden bridge",
    "a {} in a railway station",
    "a {} in a supermarket",
    "a {} on a sofa in a living room",
    "a {} in the rain",
    "a {} in front of a lighthouse",
    "a {} in front of a pyramid",
    "a {} behind a white fence",
    "a {} with a blue balloon",
    "a {} with a stack of books",
    "a {} on a purple carpet",
    "a pencil drawing of a {}",
    "a mosaic of a {}",
)
"""For the judgement after training."""


@dataclass(frozen=True, kw_only=True)
class Subject(Block):
    """How prompts call a subject."""

    kind: str
    """The word of its class: dog, backpack, teapot."""
    token: str = "sks"
    """A rare word that stands before it, which the base model has no picture of."""

    def __post_init__(self) -> None:
        """Check both words.

        Raises:
            ConfigError: One of them says nothing, or the rare word is several.
        """
        super().__post_init__()
        if not self.kind.strip():
            raise ConfigError("the class of the subject is empty; say what it is, such as dog")
        if len(self.token.split()) != 1 or self.token != self.token.strip():
            raise ConfigError(f"the token is {self.token!r}; it must be one word, such as sks")

    def fill(self, template: str, called: str | None = None) -> str:
        """Put the subject into a template, or what it is `called` there.

        Raises:
            UserError: The template has no place for it.
        """
        if SLOT not in template:
            raise UserError(f"{template!r} has no {SLOT}, which says where the subject stands: 'a {SLOT} on the moon'.")
        return template.replace(SLOT, called or f"{self.token} {self.kind}")

    def caption(self, photo: Path, usual: str) -> str:
        """What a photograph shows: the text in the file of its name beside it, else the usual template, filled.

        Raises:
            UserError: The text neither has a place for the subject nor names it.
        """
        own = caption_beside(photo)
        if not own:
            return self.fill(usual)
        if SLOT not in own and self.token not in own.split():
            raise UserError(
                f"the text beside {photo}, {own!r}, does not name the subject: write {SLOT} or {self.token} into it, "
                "or remove the file."
            )
        return own.replace(SLOT, f"{self.token} {self.kind}")

    def prompts(self, templates: str | tuple[str, ...], called: str | None = None) -> PromptSet:
        """Put the subject, or what it is `called` there, into each of some templates, or of a file of templates.

        Raises:
            UserError: A template has no place for it, or the file is none.
        """
        if isinstance(templates, str):
            found = load_prompts(templates)
            return PromptSet.of([self.fill(one, called) for one in found.prompts], found.name)
        return PromptSet.of([self.fill(one, called) for one in templates])
