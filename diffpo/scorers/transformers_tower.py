"""CLIPs of transformers, with their own tokenizer and image processor.

Images are resized and cropped by the PIL processor, on every machine: that is what the authors of the scorers ran. The
torchvision one, which transformers prefers where it is installed, rounds differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffpo.compat import ensure_torchvision
from diffpo.disk.weights import Weights, fingerprint, locate, snapshot
from diffpo.errors import UserError
from diffpo.scorers.checkpoints import describe, describe_folder, load_state, read_json, read_state
from diffpo.scorers.towers import Source, Tower, versions

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_PROCESSOR = "CLIP's tokenizer and image processor (vocab.json, merges.txt, preprocessor_config.json)"
_TOKENIZER_FILES = ("tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json", "*processor_config.json")


@dataclass(frozen=True)
class TransformersSource(Source):
    """A CLIP of transformers, found but not loaded."""

    weights: Weights
    """A folder, or one file with config.json beside it."""
    processor: Weights
    """The folder of the tokenizer and the image processor."""
    what: str
    """What the weights should be, for messages: "PickScore"."""

    @property
    def record(self) -> dict[str, Any]:
        """All that decides the features."""
        record = {
            "weights": self.weights.identity,
            "processor": self.processor.identity,
            "preprocessing": "PIL",
            "library": versions("transformers", "pillow"),
        }
        if self.weights.path.is_file():
            record["architecture"] = f"blake2b:{fingerprint(self._folder / 'config.json')}"
        return record

    @property
    def _folder(self) -> Path:
        return self.weights.path.parent if self.weights.path.is_file() else self.weights.path

    def load(self, dtype: str, device: str) -> TransformersTower:
        """Load the network, the tokenizer and the image processor."""
        ensure_torchvision()
        from transformers import AutoImageProcessor, AutoTokenizer

        self._check_kind()
        network = self._from_file() if self.weights.path.is_file() else self._from_folder()
        network.eval().requires_grad_(False).to(device, getattr(torch, dtype))
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.processor.path)
            image_processor = AutoImageProcessor.from_pretrained(self.processor.path, backend="pil")
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{self.processor.path} has no readable {_PROCESSOR}: {error}") from error
        return TransformersTower(network, tokenizer, image_processor)

    def _check_kind(self) -> None:
        """Raise if there is no CLIP: transformers would fill one with random numbers."""
        kind = read_json(self._folder / "config.json").get("model_type")
        if kind != "clip":
            raise UserError(f"{self._folder} is {describe_folder(self._folder)}; {self.what} is a 'clip' model.")

    def _from_file(self) -> Any:
        from transformers import CLIPConfig, CLIPModel

        network = CLIPModel(CLIPConfig.from_pretrained(self._folder))
        load_state(network, read_state(self.weights.path), path=self.weights.path, what=self.what)
        return network

    def _from_folder(self) -> Any:
        from transformers import CLIPModel

        try:
            network, info = CLIPModel.from_pretrained(
                self._folder, dtype=torch.float32, output_loading_info=True, weights_only=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{self._folder} cannot be loaded as {self.what}: {error}") from error
        missing = sorted(info["missing_keys"])
        if missing:
            raise UserError(f"{self._folder} is no whole CLIP: {len(missing)} weights are missing, {missing[0]} first.")
        return network


class TransformersTower(Tower):
    """A CLIP of transformers in memory."""

    def __init__(self, network: Any, tokenizer: Any, image_processor: Any):
        super().__init__()
        self.network, self._tokenizer, self._image_processor = network, tokenizer, image_processor

    @property
    def logit_scale(self) -> float:
        """The learned factor of the cosine, exp of the parameter."""
        return self.network.logit_scale.float().exp().item()

    def encode_images(self, images: Sequence[Image]) -> Tensor:
        """Features of one batch of RGB images."""
        pixels = self._image_processor(list(images), return_tensors="pt").pixel_values
        return self.network.get_image_features(
            pixel_values=pixels.to(self.network.device, self.network.dtype)
        ).pooler_output

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Features of one batch of prompts."""
        length = self.network.config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            list(prompts), padding=True, truncation=True, max_length=length, return_tensors="pt"
        ).to(self.network.device)
        return self.network.get_text_features(**tokens).pooler_output


def find_transformers(spec: str, *, processor: str | None, fallback: str | None, what: str) -> TransformersSource:
    """Find a CLIP of transformers and what goes with it.

    Args:
        spec: Hub id, local folder, or a local file with config.json beside it.
        processor: Where the tokenizer and the image processor are; None: in the folder of the weights.
        fallback: A Hub id for them, if that folder has none.
        what: What the weights should be, for messages.

    Raises:
        UserError: If something is not there.
    """
    weights = locate(spec, what=what, fetch=partial(_fetch, what=what))
    if weights.path.is_file() and not (weights.path.parent / "config.json").is_file():
        kind = describe(read_state(weights.path))
        raise UserError(
            f"{spec} holds {kind}, and no config.json of transformers is beside it. {what} needs one: give its folder."
        )
    folder = weights.path.parent if weights.path.is_file() else weights.path
    if processor is None and (fallback is None or (folder / "preprocessor_config.json").is_file()):
        return TransformersSource(weights, Weights(folder, weights.identity), what)
    fetch = partial(snapshot, what=_PROCESSOR, patterns=_TOKENIZER_FILES, probe="preprocessor_config.json")
    return TransformersSource(weights, locate(processor or fallback or spec, what=_PROCESSOR, fetch=fetch), what)


def _fetch(repo: str, what: str) -> Path:
    """Fetch a repository's configuration and weights: safetensors, and only where there are none the torch file."""
    patterns = ("config.json", "model*.safetensors*", *_TOKENIZER_FILES)
    folder = snapshot(repo, what=what, patterns=patterns, probe="config.json")
    if not any(folder.glob("model*.safetensors")):
        snapshot(repo, what=what, patterns=["pytorch_model*.bin*"], probe="pytorch_model*.bin*")
    return folder
