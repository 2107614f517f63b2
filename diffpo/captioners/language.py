"""Language models of transformers: found, checked, loaded, and run so that a text depends on its own row alone.

Sampling adds Gumbel noise to the warped log-probabilities and takes the largest: an exact draw from them. Each row's
noise comes from a CPU generator of its own, so draws do not depend on the rest of the batch, nor on the device.

    argmax(log p + g), g = -log(-log u), u uniform        is distributed as p
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from diffpo.core.block import NotNegative, Place, Range, Seed
from diffpo.disk.weights import Weights
from diffpo.scorers.base import OnDevice
from diffpo.scorers.loading import Kind, load_network
from diffpo.scorers.parts import find_model

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LanguageModel(OnDevice):
    """The options of whatever runs a language model of transformers."""

    kind: ClassVar[Kind]
    what: ClassVar[str]
    """The kind, for messages."""

    path: Place
    """Hub id or local folder of the model."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Of weights and computation; `auto` is what the files hold."""
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
        return find_model(self.path, what=self.what)

    @cached_property
    def model(self) -> Any:
        """The network, frozen, on its device."""
        return load_network(self.weights.path, self.kind, self.what, dtype=self.dtype, device=self.device)

    def generate(
        self,
        inputs: Mapping[str, Tensor],
        keys: Sequence[int],
        pad_token_id: int | None,
        allowed: Callable[[int, Tensor], list[int]] | None = None,
    ) -> Tensor:
        """Continue each row of `inputs` by tokens `[n ...]`; what is drawn depends on its key alone.

        `allowed` says which tokens may follow those of a row; None: any.
        """
        return self._continue(inputs, keys, pad_token_id, {"prefix_allowed_tokens_fn": allowed})

    def generate_with_states(
        self, inputs: Mapping[str, Tensor], key: int, pad_token_id: int | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Continue one row by tokens `[1 ...]`, and give the hidden states of the last position that a token came from.

        Returns:
            The tokens; and `[d]` of each layer: what the first one is given, what each one returns, the last one's
            after the model's norm.
        """
        kept = {"output_hidden_states": True, "return_dict_in_generate": True}
        made = self._continue(inputs, [key], pad_token_id, kept)
        return made.sequences, tuple(layer[0, -1] for layer in made.hidden_states[-1])

    def _continue(
        self, inputs: Mapping[str, Tensor], keys: Sequence[int], pad_token_id: int | None, told: Mapping[str, Any]
    ) -> Any:
        model = self.model
        on_device = {x: t.to(model.device, model.dtype if t.is_floating_point() else None) for x, t in inputs.items()}
        return model.generate(
            **on_device,
            logits_processor=_processors(self, keys),
            do_sample=False,
            num_beams=1,
            max_new_tokens=self.max_new_tokens,
            pad_token_id=pad_token_id,
            **told,
        )


def tidy(text: str) -> str:
    """One line without white space around it, and without the quotation marks that models like to put there."""
    text = " ".join(text.split())
    quoted = len(text) > 1 and text[0] + text[-1] in ('""', "''", "“”") and text[0] not in text[1:-1]
    return text[1:-1].strip() if quoted else text


def _processors(options: LanguageModel, keys: Sequence[int]) -> Any:
    """What is done to a row's scores `[n vocabulary]` before the largest is taken."""
    import torch
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

    if not options.temperature:
        return LogitsProcessorList()
    rows = [torch.Generator().manual_seed(stable_hash(options.seed, key)) for key in keys]

    def add_gumbel(input_ids: Tensor, scores: Tensor) -> Tensor:
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=row) for row in rows])
        return scores.float() - torch.log(-torch.log(uniform)).to(scores.device)

    warpers = [TemperatureLogitsWarper(options.temperature)]
    warpers += [TopPLogitsWarper(options.top_p)] if options.top_p < 1 else []
    return LogitsProcessorList([*warpers, add_gumbel])


def stable_hash(*parts: object) -> int:
    """A number in [0, 2^63) that depends on nothing but `parts`."""
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
