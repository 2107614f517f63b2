"""HPSv3 (Ma et al., arXiv:2508.03789): a Qwen2-VL 7B that reads a long instruction, and a head that rates the image.

    score = head(last state at <|Reward|>)[0]          about 10 for the best models; the head's second number is the
                                                       uncertainty, which only training used

Each image is resized to about 200,704 pixels, its aspect kept. Positions are counted one by one over text and image
alike: the authors hand Qwen2-VL finished embeddings, so its three-part image positions never come into play, and the
weights were trained like that. The authors run it in bfloat16, which takes 16 GB; float32 takes 32 GB. Their program
rounds the speeds of all rotary positions to bfloat16, in training too; so they are rounded here in every dtype.

Checked against the authors' program on small random weights: the published ones were not at hand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffpo.core.block import Count
from diffpo.disk.weights import Weights
from diffpo.errors import UserError
from diffpo.scorers.base import JointScorer
from diffpo.scorers.loading import Kind, below, check_kind, describe, load_part, load_state, read_state
from diffpo.scorers.parts import PROCESSOR_CONFIG, find_beside, read_json

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

HUB_MODEL = "MizzenAI/HPSv3"
HUB_BASE = "Qwen/Qwen2-VL-7B-Instruct"
PIXELS = 256 * 28 * 28
"""What an image is resized to, as nearly as sides of whole patches allow."""
_BASE = (
    "Qwen2-VL's configuration, tokenizer and image processor (config.json, tokenizer.json, preprocessor_config.json)"
)
INSTRUCTION = Path(__file__).with_name("hpsv3_instruction.txt").read_text(encoding="utf-8")
"""What HPSv3 was trained to read before it judges; every space counts, and the prompt belongs at `{text_prompt}`.
Published under the MIT licence."""
REWARD = "<|Reward|>"
"""The token where the rating is read, once in the instruction; it is added to Qwen2-VL's vocabulary."""
_IMAGE = "<|image_pad|>"
_CONVERSATION = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>{text}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
"""Qwen2-VL's chat template for one image and one text."""


@dataclass(frozen=True, kw_only=True)
class HPSv3(JointScorer):
    """HPS v3, from its published file or one with the same names."""

    name = "hpsv3"
    about = "A vision-language model trained to rate images as people rank them (Human Preference Score v3)."
    file = "HPSv3.safetensors"
    what = "an HPSv3"
    origin = f"Hub {HUB_MODEL}, {file}; {HUB_BASE} without its weights"
    scale = "mean rating"

    path: str = HUB_MODEL
    base: str | None = None
    """Where Qwen2-VL's configuration, tokenizer and image processor are; None is beside the weights if they are there,
    else the Hub id that HPSv3 was tuned from. Its weights are not needed."""
    batch: Count = 4
    """Images at a time."""

    @property
    def _found(self) -> dict[str, Any]:
        return super()._found | {
            "base": self._base.identity,
            "preprocessing": f"PIL, {PIXELS} pixels",
            "rotary speeds": "bfloat16",
        }

    def _prepare(self, images: list[Image]) -> Any:
        image_processor = self._loaded[-1]
        try:
            return image_processor(images, size={"shortest_edge": PIXELS, "longest_edge": PIXELS}, return_tensors="pt")
        except ValueError as error:
            raise UserError(f"{self.name} cannot judge one of these images: {error}.") from error

    def _score_batch(self, seen: Any, prompts: list[str]) -> Tensor:
        network, head, tokenizer, image_processor = self._loaded
        counts = (seen.image_grid_thw.prod(-1) // image_processor.merge_size**2).tolist()
        texts = [conversation(prompt, count, tokenizer) for prompt, count in zip(prompts, counts, strict=True)]
        tokens = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt").to(network.device)
        pixels = seen.pixel_values.to(network.device, network.dtype)
        image = network.visual(pixels, grid_thw=seen.image_grid_thw.to(network.device)).pooler_output
        embedded = network.get_input_embeddings()(tokens.input_ids)
        place = (tokens.input_ids == network.config.image_token_id)[..., None].expand_as(embedded)
        states = network.language_model(
            inputs_embeds=embedded.masked_scatter(place, image.to(embedded.dtype)),
            attention_mask=tokens.attention_mask,
            use_cache=False,
        ).last_hidden_state
        at = tokens.input_ids == tokenizer.convert_tokens_to_ids(REWARD)
        return head(states[at].float())[:, 0]

    @cached_property
    def _base(self) -> Weights:
        return find_beside(self.base, self._folder, otherwise=HUB_BASE, what=_BASE, probe=PROCESSOR_CONFIG)

    @cached_property
    def _loaded(self) -> tuple[Any, Any, Any, Any]:
        """The network, the head, the tokenizer and the image processor."""
        folder = self._base.path
        check_kind(folder, Kind("AutoModel", "qwen2_vl"), _BASE)
        tokenizer = load_part(folder, "AutoTokenizer", "Qwen2-VL's tokenizer")
        tokenizer.add_tokens([REWARD], special_tokens=True)
        image_processor = load_part(folder, "AutoImageProcessor", "Qwen2-VL's image processor")
        return *self._build(len(tokenizer)), tokenizer, image_processor

    def _build(self, vocabulary: int) -> list[Any]:
        """Load the network in its dtype and the head in float32."""
        import torch
        from torch import nn

        path, dtype = self._weights.path, getattr(torch, self.dtype)
        state = read_state(path)
        own, rating = split_state(state)
        rows = own.get("language_model.embed_tokens.weight")
        if rows is None or not rating:
            raise UserError(f"{path} holds {describe(state)}, not a whole HPSv3 (a Qwen2-VL with rm_head).")
        if len(rows) != vocabulary:
            raise UserError(
                f"{path} knows {len(rows)} tokens, and the tokenizer in {self._base.path} has {vocabulary} with "
                f"{REWARD}. Give base={HUB_BASE} or a local copy of it."
            )
        network = empty_qwen2_vl(self._base.path, vocabulary)
        width = network.config.text_config.hidden_size
        head = nn.Sequential(  # as the authors number it, with a dropout at 2
            *(nn.Linear(width, 1024), nn.ReLU(), nn.Identity(), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2))
        )
        own, rating = {name: x.to(dtype) for name, x in own.items()}, {name: x.float() for name, x in rating.items()}
        how = {"path": path, "what": self.what, "dtype": None, "device": self.device}
        return [load_state(network, own, **how), load_state(head, rating, **how)]


def empty_qwen2_vl(folder: Path, vocabulary: int) -> Any:
    """A Qwen2-VL as its folder's configuration says, without weights, for so many tokens; rotary speeds are rounded."""
    from accelerate import init_empty_weights
    from transformers import Qwen2VLConfig, Qwen2VLModel

    config = Qwen2VLConfig.from_dict(read_json(folder / "config.json"))
    config.text_config.vocab_size = vocabulary
    with init_empty_weights(include_buffers=False):  # billions of random numbers would take minutes
        network = Qwen2VLModel(config)
    for name, buffer in network.named_buffers():
        if name.endswith("inv_freq"):
            buffer.copy_(buffer.bfloat16())
    return network


def conversation(
    prompt: str, patches: int, tokenizer: Any, *, instruction: str = INSTRUCTION, pad: str = _IMAGE
) -> str:
    """What the network reads: the instruction with the prompt in it, behind room (`pad`) for the image's `patches`."""
    text = instruction.replace("{text_prompt}", without_marks(prompt, tokenizer))
    return _CONVERSATION.format(image=pad * patches, text=text)


def without_marks(prompt: str, tokenizer: Any) -> str:
    """A prompt without marks of the tokenizer, such as `<|image_pad|>`: they are no text."""
    for mark in tokenizer.get_added_vocab():
        prompt = prompt.replace(mark, " ")
    return prompt


def split_state(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Divide published weights into the network's, by our names, and the head's. What predicts words is left out.

    The names of the network's weights are today's of transformers, or those that it had when the authors saved theirs.
    """
    own = {}
    for name, value in state.items():
        name = re.sub(r"^(model\.)?visual\.", "visual.", name)
        name = re.sub(r"^model\.(language_model\.)?", "language_model.", name)
        if name.startswith(("visual.", "language_model.")):
            own[name] = value
    return own, below(state, "rm_head.")
