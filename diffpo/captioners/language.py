"""Language models of transformers: found, checked, loaded, and run so that a text depends on its own row alone.

Sampling adds Gumbel noise to the warped log-probabilities and takes the largest: an exact draw from them. Each row's
noise comes from a CPU generator of its own, so draws do not depend on the rest of the batch, nor on the device.

    argmax(log p + g), g = -log(-log u), u uniform        is distributed as p
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from diffpo.captioners.base import Batched
from diffpo.core.block import NotNegative, Place, Range, Seed
from diffpo.disk.weights import Weights, locate, snapshot
from diffpo.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

FILES = ("*.json", "*.jinja", "*.txt", "*.model")
SAFETENSORS = ("model*.safetensors*",)


@dataclass(frozen=True)
class Kind:
    """A kind of model, as transformers sorts them."""

    what: str
    auto: str
    """The class of transformers that loads it."""
    mapping: str
    """The table of transformers that lists its `model_type`s."""


IMAGE_TEXT = Kind(
    "an image-text-to-text model", "AutoModelForImageTextToText", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"
)
SEQUENCE = Kind("a sequence-to-sequence model", "AutoModelForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES")
CAUSAL = Kind("a causal language model", "AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")


@dataclass(frozen=True, kw_only=True)
class LanguageModel(Batched):
    """The options of whatever runs a language model of transformers."""

    kind: ClassVar[Kind]
    weight_files: ClassVar[tuple[str, ...]] = SAFETENSORS
    """Patterns of what is fetched from the Hub."""

    path: Place
    """Hub id or local folder of the model."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Of weights and computation; `auto` is what the files hold."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, ..."""
    max_new_tokens: Annotated[int, Range(least=1, most=65536)] = 128
    """Where a text is cut off."""
    temperature: NotNegative = 0.0
    """0 takes the likeliest token each time; above, tokens are drawn, the more evenly the higher."""
    top_p: Annotated[float, Range(above=0, most=1)] = 1.0
    """Draw from the likeliest tokens that have this probability together."""
    seed: Seed = 0
    """Of the draws; they depend on it and on the row, not on the batch."""

    @property
    def model_provenance(self) -> dict[str, Any]:
        """What decides a text, as far as the model goes."""
        sampling = {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        return {
            "weights": self.weights.identity,
            "dtype": self.dtype,
            "max_new_tokens": self.max_new_tokens,
            "sampling": sampling if self.temperature else "greedy",
        }

    @cached_property
    def weights(self) -> Weights:
        """Where the model is."""
        return find(self.path, self.kind.what, (*FILES, *self.weight_files))

    @cached_property
    def model(self) -> Any:
        """The network, frozen, on its device."""
        return load_model(self.path, self.weights.path, self.kind, self.dtype, self.device)

    def generate(self, inputs: Mapping[str, Tensor], keys: Sequence[int], pad_token_id: int | None) -> Tensor:
        """Continue each row of `inputs`; see `generate`."""
        import torch

        on_device = {
            name: x.to(self.model.device, self.model.dtype if x.is_floating_point() else None)
            for name, x in inputs.items()
        }
        with torch.no_grad():
            return self.model.generate(
                **on_device,
                logits_processor=_processors(self, keys),
                do_sample=False,
                num_beams=1,
                max_new_tokens=self.max_new_tokens,
                pad_token_id=pad_token_id,
            )


def find(spec: str, what: str, patterns: tuple[str, ...]) -> Weights:
    """Find a folder of transformers: local, or a Hub id.

    Raises:
        UserError: If nothing is there, or the Hub cannot be reached.
    """
    return locate(spec, what=what, fetch=partial(snapshot, what=what, patterns=patterns, probe="*config.json"))


def load_model(spec: str, folder: Path, kind: Kind, dtype: str, device: str) -> Any:
    """Load a network of a kind, frozen.

    Raises:
        UserError: If the folder holds another kind, or not all of its weights.
    """
    from diffpo.compat import ensure_torchvision, pick_device

    ensure_torchvision()
    import torch
    import transformers

    _check_kind(spec, folder, kind)
    auto = getattr(transformers, kind.auto)
    try:
        model, info = auto.from_pretrained(
            folder, dtype=dtype if dtype == "auto" else getattr(torch, dtype), output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{spec} cannot be loaded as {kind.what}: {error}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(f"{spec} is not whole: {len(missing)} weights are missing, {missing[0]} first.")
    return model.eval().requires_grad_(False).to(pick_device(device))


def load_part(spec: str, folder: Path, auto: str, what: str) -> Any:
    """Load a tokenizer (`AutoTokenizer`) or processor (`AutoProcessor`).

    Raises:
        UserError: If the folder does not hold it.
    """
    from diffpo.compat import ensure_torchvision

    ensure_torchvision()
    import transformers

    try:
        return getattr(transformers, auto).from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise UserError(f"{spec} has no {what} that transformers can load: {error}") from error


def require_template(spec: str, owner: Any) -> None:
    """Check that a processor or tokenizer has a chat template.

    Raises:
        UserError: It has none.
    """
    if not owner.chat_template:
        raise UserError(
            f"{spec} has no chat template (chat_template.jinja), so nobody knows how to address it. Give a chat or "
            "instruct version of the model, or add the template to a local copy."
        )


def pad_left(tokenizer: Any) -> None:
    """Let a batch of prompts of different length end together, where their continuations begin."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def tidy(text: str) -> str:
    """One line without white space around it, and without the quotation marks that models like to put there."""
    text = " ".join(text.split())
    quoted = len(text) > 1 and text[0] + text[-1] in ('""', "''", "“”") and text[0] not in text[1:-1]
    return text[1:-1].strip() if quoted else text


def _check_kind(spec: str, folder: Path, kind: Kind) -> None:
    from transformers.models.auto import modeling_auto

    try:
        found = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError) as error:
        raise UserError(f"{spec} has no readable config.json, so it is no model of transformers ({error}).") from error
    if found not in getattr(modeling_auto, kind.mapping):
        raise UserError(f"{spec} is a {found!r} model, which is not {kind.what} ({kind.auto} of transformers).")


def _processors(options: LanguageModel, keys: Sequence[int]) -> Any:
    """What is done to a row's scores `[n vocabulary]` before the largest is taken."""
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

    if not options.temperature:
        return LogitsProcessorList()
    warpers = [TemperatureLogitsWarper(options.temperature)]
    warpers += [TopPLogitsWarper(options.top_p)] if options.top_p < 1 else []
    return LogitsProcessorList([*warpers, _gumbel(options.seed, keys)])


def _gumbel(seed: int, keys: Sequence[int]) -> Any:
    import torch

    rows = [torch.Generator().manual_seed(stable_hash(seed, key)) for key in keys]

    def add_noise(input_ids: Tensor, scores: Tensor) -> Tensor:
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=row) for row in rows])
        return scores.float() - torch.log(-torch.log(uniform)).to(scores.device)

    return add_noise


def stable_hash(*parts: object) -> int:
    """A number in [0, 2^63) that depends on nothing but `parts`."""
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
