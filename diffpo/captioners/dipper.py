"""Perturbed captions by DIPPER (Krishna et al., arXiv:2303.13408), a T5 paraphraser with two control codes, as in DCPO.

    lexical = L', order = O' PREFIX <sent> SENTENCES </sent>       L' = 100 - lexical diversity, O' = 100 - order's

DCPO sets the lexical diversity to 40 (weak), 60 (medium) or 80 (strong) and the order's to 0. A text is rewritten in
windows of three sentences; what was written before is added to the prefix of the next window, as DIPPER was trained.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from diffpo.captioners.base import Level, Perturber
from diffpo.captioners.language import LanguageModel, stable_hash, tidy
from diffpo.core.block import Count, NotNegative, Place, Range
from diffpo.disk.weights import Weights
from diffpo.errors import ConfigError
from diffpo.scorers.loading import Kind, load_part
from diffpo.scorers.parts import find_folder

HUB_MODEL = "kalpeshk2011/dipper-paraphraser-xxl"
HUB_TOKENIZER = "google/t5-v1_1-xxl"
LEXICAL: dict[Level, int] = {"weak": 40, "medium": 60, "strong": 80}
CODES = (0, 20, 40, 60, 80, 100)
"""The diversities that DIPPER was trained on."""
_TOKENIZER = "T5's tokenizer (spiece.model, tokenizer_config.json)"


@dataclass(frozen=True, kw_only=True)
class Dipper(LanguageModel, Perturber):
    """DIPPER, or any sequence-to-sequence model that takes its control codes."""

    name = "dipper"
    kind = Kind("AutoModelForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES")
    what = "a sequence-to-sequence model"

    path: Place = HUB_MODEL
    """Hub id or local folder of the model."""
    tokenizer: str | None = None
    """Where the tokenizer is; None is the model's folder if it is in there, else T5's on the Hub."""
    level: Level = "medium"
    """Lexical diversity: 40 (weak), 60 (medium) or 80 (strong)."""
    order: Annotated[int, Range(least=0, most=100)] = 0
    """Diversity of the order of words: 0, 20, ... 100."""
    prefix: str = "Paraphrase the caption of an image and perturb what it says."
    """What stands before the text that is rewritten."""
    window: Count = 3
    """Sentences at a time."""
    max_new_tokens: Annotated[int, Range(least=1, most=65536)] = 256
    """Where a window is cut off."""
    temperature: NotNegative = 1.0
    top_p: Annotated[float, Range(above=0, most=1)] = 0.75

    def __post_init__(self) -> None:
        """Refuse what DIPPER was not trained on."""
        super().__post_init__()
        if self.order not in CODES:
            raise ConfigError(f"order is {self.order}; allowed are {', '.join(map(str, CODES))}.")

    @property
    def provenance(self) -> dict[str, Any]:
        return {
            "perturber": self.name,
            "level": self.level,
            "lexical": LEXICAL[self.level],
            "order": self.order,
            "prefix": self.prefix,
            "window": self.window,
            "tokenizer": self._tokenizer_weights.identity,
            **self.model_provenance,
        }

    def perturb(self, captions: Sequence[str], keys: Sequence[int]) -> list[str]:
        windows = [split_windows(caption, self.window) for caption in captions]
        written: list[list[str]] = [[] for _ in captions]
        for number in range(max(map(len, windows), default=0)):
            rows = [i for i, parts in enumerate(windows) if number < len(parts)]
            controls = [self.control(windows[i][number], written[i]) for i in rows]
            inputs = self._tokenizer(controls, padding=True, return_tensors="pt")
            own = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            draws = [stable_hash(keys[i], number) for i in rows]
            tokens = self.generate(own, draws, self._tokenizer.pad_token_id)
            for i, text in zip(rows, self._tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
                written[i].append(text)
        return [tidy(" ".join(parts)) for parts in written]

    def control(self, text: str, written: Sequence[str]) -> str:
        """What the model reads: the codes, the prefix with what it has written so far, the text."""
        codes = f"lexical = {100 - LEXICAL[self.level]}, order = {100 - self.order}"
        before = " ".join(" ".join([codes, self.prefix, *written]).split())
        return f"{before} <sent> {text} </sent>"

    @cached_property
    def _tokenizer_weights(self) -> Weights:
        own = ("tokenizer.json", "spiece.model")
        if self.tokenizer is None and any((self.weights.path / name).is_file() for name in own):
            return self.weights
        return find_folder(self.tokenizer or HUB_TOKENIZER, what=_TOKENIZER, probe="*config.json")

    @cached_property
    def _tokenizer(self) -> Any:
        return load_part(self._tokenizer_weights.path, "AutoTokenizer", "a tokenizer")


def split_windows(text: str, size: int) -> list[str]:
    """Cut a text into pieces of `size` sentences; a sentence ends with . ! or ? before white space."""
    sentences = re.split(r"(?<=[.!?])\s+", " ".join(text.split()))
    return [" ".join(sentences[i : i + size]) for i in range(0, len(sentences), size)]
