"""CLIPs of transformers, with their own tokenizer and image processor, or with the pixels of OpenAI's program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from diffpo.compat import ensure_torchvision
from diffpo.disk.weights import Weights, fingerprint
from diffpo.errors import UserError
from diffpo.scorers.base import versions
from diffpo.scorers.loading import CLIP, check_kind, describe, frozen, load_network, load_part, load_state, read_state
from diffpo.scorers.parts import find_folder, find_model, read_json
from diffpo.scorers.pixels import resize_and_crop
from diffpo.scorers.towers import Tower, TowerSpec

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_PROCESSOR = "CLIP's tokenizer and image processor (vocab.json, merges.txt, preprocessor_config.json)"
Preprocessing = Literal["PIL", "PIL, OpenAI's crop"]
"""`PIL`: transformers' processor, as PickScore's authors ran it. `PIL, OpenAI's crop`: see `pixels.resize_and_crop`."""


@dataclass(frozen=True)
class TransformersSpec(TowerSpec):
    """A CLIP of transformers, found but not loaded."""

    weights: Weights
    """A folder, or one file with config.json beside it."""
    processor: Weights
    """The folder of the tokenizer and the image processor."""
    what: str
    """What the weights should be, for messages: "PickScore"."""
    preprocessing: Preprocessing

    @property
    def record(self) -> dict[str, Any]:
        record = {
            "weights": self.weights.identity,
            "processor": self.processor.identity,
            "preprocessing": self.preprocessing,
            "library": versions("transformers", "pillow"),
        }
        if self.weights.path.is_file():
            record["architecture"] = f"blake2b:{fingerprint(_folder(self.weights) / 'config.json')}"
        return record

    def load(self, dtype: str, device: str) -> TransformersTower:
        if self.weights.path.is_file():
            network = self._from_file(dtype, device)
        else:
            network = load_network(self.weights.path, CLIP, self.what, dtype=dtype, device=device)
        tokenizer = load_part(self.processor.path, "AutoTokenizer", _PROCESSOR)
        if self.preprocessing != "PIL":
            side = network.config.vision_config.image_size
            return TransformersTower(
                network, tokenizer, lambda images: torch.stack([resize_and_crop(x, side) for x in images])
            )
        processor = load_part(self.processor.path, "AutoImageProcessor", _PROCESSOR)
        return TransformersTower(network, tokenizer, lambda images: processor(images, return_tensors="pt").pixel_values)

    def _from_file(self, dtype: str, device: str) -> Any:
        ensure_torchvision()
        from transformers import CLIPConfig, CLIPModel

        check_kind(_folder(self.weights), CLIP, self.what)
        network = CLIPModel(CLIPConfig.from_dict(read_json(_folder(self.weights) / "config.json")))
        load_state(network, read_state(self.weights.path), path=self.weights.path, what=self.what)
        return frozen(network, dtype, device)


class TransformersTower(Tower):
    """A CLIP of transformers in memory."""

    def __init__(self, network: Any, tokenizer: Any, preprocess: Callable[[list[Image]], Tensor]):
        super().__init__()
        self.network, self._tokenizer, self._preprocess = network, tokenizer, preprocess

    @property
    def logit_scale(self) -> float:
        return self.network.logit_scale.float().exp().item()

    def encode_images(self, images: Sequence[Image]) -> Tensor:
        pixels = self._preprocess(list(images)).to(self.network.device, self.network.dtype)
        return self.network.get_image_features(pixel_values=pixels).pooler_output

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        length = self.network.config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            list(prompts), padding=True, truncation=True, max_length=length, return_tensors="pt"
        ).to(self.network.device)
        return self.network.get_text_features(**tokens).pooler_output


def find_transformers(
    spec: str,
    *,
    what: str,
    processor: str | None = None,
    otherwise: str | None = None,
    preprocessing: Preprocessing = "PIL",
) -> TransformersSpec:
    """Find a CLIP of transformers and what goes with it.

    Args:
        spec: Hub id, local folder, or a local file with config.json beside it.
        what: What the weights should be, for messages.
        processor: Where the tokenizer and the image processor are; None: in the folder of the weights.
        otherwise: A Hub id for them, if that folder has none.
        preprocessing: How images become pixels.

    Raises:
        UserError: If something is not there.
    """
    weights = find_model(spec, what=what)
    folder = _folder(weights)
    if weights.path.is_file() and not (folder / "config.json").is_file():
        kind = describe(read_state(weights.path))
        raise UserError(
            f"{spec} holds {kind}, and no config.json of transformers is beside it. {what} needs one: give its folder."
        )
    if processor is None and (otherwise is None or (folder / "preprocessor_config.json").is_file()):
        return TransformersSpec(weights, Weights(folder, weights.identity), what, preprocessing)
    found = find_folder(processor or otherwise or spec, what=_PROCESSOR, probe="preprocessor_config.json")
    return TransformersSpec(weights, found, what, preprocessing)


def _folder(weights: Weights) -> Path:
    return weights.path.parent if weights.path.is_file() else weights.path
